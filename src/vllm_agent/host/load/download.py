"""Sees how much of a model has come into the Hugging Face cache of a loading server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vllm_agent.config.model_id import is_revision
from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import TooManyNamesError, open_tree_of
from vllm_agent.host.hf_hub.cached_repo import DEFAULT_REVISION, repo_folder
from vllm_agent.host.hf_hub.hub_variables import PUBLIC_HUB, origin
from vllm_agent.host.hf_hub.identity import HubRepo, Model, identify
from vllm_agent.host.load.repo_files import RepoFiles
from vllm_agent.observations import Download, Witness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_agent.host.contained_tree import ContainedTree
    from vllm_agent.host.hf_hub.sizes import HubSizes
    from vllm_agent.host.model_environment import ModelEnvironment
    from vllm_agent.host.proc import Proc
    from vllm_agent.observations import VllmCommand

SLACK: Final = 0.05
"""By how much of itself a total may be less than what is there. An index counts tensors without the
headers of their files, and a small file on its way belongs to no total."""

_WITHOUT_FILES: Final = frozenset({"dummy"})
AS_ON_THE_HUB: Final = frozenset({"auto", "hf"})
"""Formats for which `HubSizes` has the total."""


class DownloadWitness:
    """The files of one launch. Every call blocks as the disk of the server does: use a thread."""

    def __init__(  # noqa: PLR0917 - each is of a type of its own
        self,
        proc: Proc,
        pid: int,
        command: VllmCommand,
        environment: ModelEnvironment | None,
        started_unix_seconds: float,
        sizes: HubSizes | None,
    ) -> None:
        self._proc = proc
        self._pid = pid
        self._command = command
        self._load_format = (command.load_format or "auto").lower()
        self._revision = command.revision or DEFAULT_REVISION
        self._environment = environment
        self._started_unix_seconds = started_unix_seconds
        self._sizes = sizes
        self._model: Model | None = None
        self._repo: RepoFiles | None = None
        self._is_under_way = False
        self._is_size_known = False
        self._has_left_out = False

    @property
    def has_left_out(self) -> bool:
        """Whether the cache of the model ever held more files than are read, and was not seen."""
        return self._has_left_out

    @property
    def question(self) -> tuple[str, str] | None:
        """Repository and revision for `HubSizes.ask`, where only the Hub can tell the total now.

        None where it need not be asked, or must not: the server may not use the network or uses
        another Hub than the agent, or that is not known.
        """
        environment, sizes, model = self._environment, self._sizes, self._model
        if sizes is None or environment is None or environment.is_offline:
            return None
        if not isinstance(model, HubRepo) or not self._is_as_on_the_hub(model):
            return None
        is_wanted = self._is_under_way and not self._is_size_known
        is_same_hub = uses_hub_of(environment, sizes)
        return (model.id, self._revision) if is_same_hub and is_wanted else None

    def look(self) -> Download | None:
        """What is there now; None for a model of no repository, or where it cannot be told."""
        cache_folder = cache_folder_of(self._command, self._environment)
        if cache_folder is None or self._load_format in _WITHOUT_FILES:
            return None
        try:
            with open_tree_of(self._proc, self._pid) as files:
                return self._look(files, cache_folder)
        except TooManyNamesError:
            self._has_left_out = True
            return None
        except UnreadableFileError:
            return None

    def _is_as_on_the_hub(self, model: HubRepo) -> bool:
        return self._load_format in AS_ON_THE_HUB and not model.part

    def _look(self, files: ContainedTree, cache_folder: str) -> Download | None:
        if self._model is None:
            self._model = identify(self._command.model, files)
        model = self._model
        if not isinstance(model, HubRepo) or not is_revision(self._revision):
            return None
        if self._repo is None:
            folder = repo_folder(cache_folder, model.id)
            # Of one part nothing tells which files it is.
            load_format = None if model.part else self._load_format
            self._repo = RepoFiles(folder, self._revision, load_format, self._started_unix_seconds)
        self._repo.look(files)
        # Between two files there is a moment with none.
        is_between = self._is_under_way and self._repo.is_whole is False
        self._is_under_way = bool(self._repo.on_their_way) or is_between
        return self._told(self._repo, model)

    def _told(self, repo: RepoFiles, model: HubRepo) -> Download:
        done_bytes, other_bytes = repo.done_bytes, repo.other_bytes
        if repo.is_whole:
            self._is_size_known = True
            return Download(done_bytes, done_bytes, Witness.HF_CACHE, self._is_under_way)
        for total_bytes, source in self._totals(repo, model):
            size_bytes = total_bytes + other_bytes
            if done_bytes <= size_bytes * (1 + SLACK):
                self._is_size_known = source is Witness.HF_CACHE
                size_bytes = max(size_bytes, done_bytes)
                return Download(done_bytes, size_bytes, source, self._is_under_way)
        self._is_size_known = False
        return Download(done_bytes, None, None, self._is_under_way)

    def _totals(self, repo: RepoFiles, model: HubRepo) -> Iterator[tuple[int, Witness]]:
        """What the weights may come to, the best first."""
        for total_bytes in (repo.listed_bytes, repo.indexed_bytes):
            if total_bytes is not None:
                yield total_bytes, Witness.HF_CACHE
        if self._sizes is not None and self._is_as_on_the_hub(model):
            told_bytes = self._sizes.known(model.id, self._revision)
            if told_bytes is not None:
                yield told_bytes, Witness.HUB


def cache_folder_of(command: VllmCommand, environment: ModelEnvironment | None) -> str | None:
    """The folder that has the models of a server, as the server sees it; None if it is unknown."""
    given = command.download_dir
    if given is None:
        return None if environment is None else environment.hub_cache
    if not given.startswith("~"):
        return given
    home = None if environment is None else environment.home
    is_own = given[1:2] in {"", "/"}
    return home + given[1:] if home and is_own else None


def uses_hub_of(environment: ModelEnvironment, sizes: HubSizes) -> bool:
    """Whether a server asks the same Hub as the agent does: another one must not hear of models."""
    return origin(environment.hf_endpoint or PUBLIC_HUB) == origin(sizes.endpoint)
