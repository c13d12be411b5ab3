"""What of a launch's model is on this host, and whether the launch can do with that."""

from __future__ import annotations

import contextlib
import os
import pwd
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from vllm_agent.config.model_id import is_revision, why_no_model
from vllm_agent.host.contained_file import UnreadableFileError
from vllm_agent.host.contained_tree import MissingFileError, open_tree
from vllm_agent.host.hf_hub.cached_repo import DEFAULT_REVISION, repo_folder
from vllm_agent.host.hf_hub.completeness import (
    Completeness,
    Presence,
    is_complete,
    why_airgapped,
)
from vllm_agent.host.hf_hub.identity import HubRepo, LocalFolder, Model, Unidentified, identify
from vllm_agent.host.launching.asking import USERS, ask
from vllm_agent.host.launching.plan import WORKING_FOLDER
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.host.load.download import AS_ON_THE_HUB, cache_folder_of
from vllm_agent.host.load.repo_files import RepoFiles
from vllm_agent.host.model_environment import ModelEnvironment
from vllm_agent.host.vllm_grammar import read_flags
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vllm_agent.host.contained_tree import ContainedTree
    from vllm_agent.host.launching.plan import LaunchPlan
    from vllm_agent.host.launching.user import User
    from vllm_agent.host.patience import Patience

_CONFIGS: Final = ("config.json", "params.json")  # the second is Mistral's own
_HF_CONFIG_PATH: Final = "hf-config-path"
_MODELSCOPE: Final = "VLLM_USE_MODELSCOPE"
_REDIRECTS: Final = "VLLM_MODEL_REDIRECT_PATH"
_TRUE: Final = frozenset({"1", "true"})  # vllm.envs
_UNKNOWN: Final = Completeness(Presence.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A repository of the Hub and what the cache in `folder` has of it.

    `done_bytes` is what is there of its weights, finished or not, and `total_bytes` what they come
    to, None where the cache does not know. `can_ask` is whether the Hub may be asked for the size
    of what this launch would fetch, and can tell it.
    """

    repo: HubRepo
    revision: str
    folder: str
    completeness: Completeness
    environment: ModelEnvironment
    done_bytes: int = 0
    total_bytes: int | None = None
    is_offline: bool = False
    can_ask: bool = False


async def model_at_hand(
    plan: LaunchPlan, user: User | None, patience: Patience
) -> CachedModel | Refusal | None:
    """The model as far as it is a repository of the Hub; None for any other.

    What cannot be told never stands in the way: vLLM finds out.
    """
    if why_not := why_no_model(plan.model):
        return _not_found(why_not)
    if _is_elsewhere(plan):
        return None
    model = await ask(patience, partial(_identify, plan=plan, user=user), plan.model)
    if isinstance(model, Refusal):
        return model
    environment = await ask(patience, partial(_environment, plan=plan, user=user), USERS)
    folder = cache_folder_of(plan.command, environment)
    if not isinstance(model, HubRepo) or not folder:
        return None
    folder = os.path.join(WORKING_FOLDER, folder)
    cached = await ask(
        patience,
        partial(_look, plan=plan, user=user, repo=model, environment=environment),
        folder,
    )
    if why_not := why_airgapped(cached.completeness, is_offline=cached.is_offline):
        return Refusal(Reason.AIRGAPPED, f"{model.id}: {why_not} ({folder})")
    return cached


def _is_elsewhere(plan: LaunchPlan) -> bool:
    """Whether models come from another hub, or a name stands for another one."""
    is_of_modelscope = plan.environ.get(_MODELSCOPE, "").strip().lower() in _TRUE
    return is_of_modelscope or bool(plan.environ.get(_REDIRECTS))


def _identify(name: str, plan: LaunchPlan, user: User | None) -> Model | Refusal:
    with _files(user) as files:
        model = identify(name, files)
        match model:
            case LocalFolder(path) if not _brings_config(plan):
                if all(_is_missing(files, f"{path}/{config}") for config in _CONFIGS):
                    return _not_found(f"the folder {path} has no {_CONFIGS[0]}")
            # What this thread may not see, a member of another group of the user may.
            case Unidentified(why) if "://" not in name and _is_missing(files, name):
                return _not_found(f"{name}: {why}")
    return model


def _environment(_: str, plan: LaunchPlan, user: User | None) -> ModelEnvironment:
    home = None
    if user is not None:
        home = user.home
    elif "HOME" not in plan.environ:
        with contextlib.suppress(KeyError):
            home = pwd.getpwuid(os.geteuid()).pw_dir
    return ModelEnvironment.of_start(plan.environ, WORKING_FOLDER, home)


def _look(
    folder: str, plan: LaunchPlan, user: User | None, repo: HubRepo, environment: ModelEnvironment
) -> CachedModel:
    revision = plan.command.revision or DEFAULT_REVISION
    load_format = (plan.command.load_format or "auto").lower()
    is_offline = plan.is_airgapped or environment.is_offline
    # Of one part nothing tells which files it is.
    stored = RepoFiles(
        repo_folder(folder, repo.id), revision, None if repo.part else load_format, 0.0
    )
    with _files(user) as files:
        completeness = is_complete(files, folder, repo.id, revision, load_format)
        if is_revision(revision):
            with contextlib.suppress(UnreadableFileError):
                stored.look(files)
    is_all_needed = not repo.part and not _brings_config(plan)
    if completeness.presence is Presence.INCOMPLETE and not is_all_needed:
        completeness = _UNKNOWN
    return CachedModel(
        repo=repo,
        revision=revision,
        folder=folder,
        completeness=completeness,
        environment=environment,
        done_bytes=stored.done_bytes - stored.other_bytes,
        total_bytes=stored.indexed_bytes if stored.listed_bytes is None else stored.listed_bytes,
        is_offline=is_offline,
        can_ask=not is_offline and not repo.part and load_format in AS_ON_THE_HUB,
    )


def _brings_config(plan: LaunchPlan) -> bool:
    """Whether the configuration of the model is elsewhere than the model."""
    return read_flags(plan.arguments, {_HF_CONFIG_PATH}).value(_HF_CONFIG_PATH) is not None


def _files(user: User | None) -> AbstractContextManager[ContainedTree]:
    return open_tree("/", WORKING_FOLDER, None if user is None else (user.uid, user.gid))


def _is_missing(files: ContainedTree, path: str) -> bool:
    try:
        files.status(path)
    except MissingFileError:
        return True
    except UnreadableFileError:
        pass
    return False


def _not_found(detail: str) -> Refusal:
    return Refusal(Reason.MODEL_NOT_FOUND, detail)
