"""Asks the Hub how large the weights of a model are.

The question runs in a process of its own: huggingface_hub takes 40 MB and a fifth of a second to
import, and whatever the network does to it ends with its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import os
import site
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.config.model_id import is_revision, why_no_repo_id
from vllm_agent.host.hf_hub.cached_repo import DEFAULT_REVISION
from vllm_agent.host.hf_hub.checkpoint import MAX_WEIGHT_BYTES
from vllm_agent.host.hf_hub.hub_variables import PUBLIC_HUB, is_on
from vllm_agent.host.short_command import NoAnswerError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DEADLINE_SECONDS: Final = 20.0
"""For one question: a start of Python, an import, one request that has a deadline of its own."""

MAX_ANSWER_BYTES: Final = 64
"""Of an answer, which is one number."""

KEPT_SECONDS: Final = 3600.0
"""How long an answer is not asked for again: a branch moves rarely, its size more rarely still."""

KEPT_FAILURE_SECONDS: Final = 600.0
"""The same for none: the Hub limits how often it is asked, and a load takes minutes."""

MAX_KEPT: Final = 64
"""Answers kept: many times the models of one host. The oldest is forgotten."""

MAX_COMPLAINT_LENGTH: Final = 200
"""Logged of why there is no answer: a clause."""

_QUESTION: Final = (sys.executable, "-P", "-m", "vllm_agent.host.hf_hub.size_question")
_OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_PASSED: Final = (
    *("LD_LIBRARY_PATH", "PYTHONPATH"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "NO_PROXY", "no_proxy"),
)
_PROXIES: Final = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY")
_WITHOUT_ACCOUNT: Final = MappingProxyType(
    {
        "HOME": "/nonexistent",  # where the files of an account would be: a token, ~/.netrc
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
)

_LOGGER: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    size_bytes: int | None
    until_seconds: float


class HubSizes:
    """What the weights of models come to, as the Hub told it to someone without an account.

    Of `environ`, the agent's own environment, come the address of the Hub (HF_ENDPOINT), whether
    it may be asked at all (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE), and the way there.
    """

    def __init__(
        self,
        environ: Mapping[str, str] = os.environ,
        *,
        clock_seconds: Callable[[], float] = time.monotonic,
        question: Sequence[str] = _QUESTION,
    ) -> None:
        self.endpoint = _without_login(environ.get("HF_ENDPOINT") or PUBLIC_HUB)
        self.is_offline = any(is_on(environ.get(name, "")) for name in _OFFLINE)
        self._environment = {**_way(environ), "HF_ENDPOINT": self.endpoint, **_WITHOUT_ACCOUNT}
        self._clock_seconds = clock_seconds
        self._question = question
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()
        self._silent: set[str] = set()
        self._turn = asyncio.Lock()

    def known(self, repo: str, revision: str | None = None) -> int | None:
        """What was told last of a model; None where nothing was."""
        answer = self._answers.get((repo, revision or DEFAULT_REVISION))
        return None if answer is None else answer.size_bytes

    async def ask(self, repo: str, revision: str | None = None) -> int | None:
        """What the weights that vLLM fetches of a model come to, in bytes; None if nobody tells.

        Questions wait for one another, and are asked again only after a while.
        """
        revision = revision or DEFAULT_REVISION
        if self.is_offline or why_no_repo_id(repo) or not is_revision(revision):
            return None
        async with self._turn:
            answer = self._answers.get((repo, revision))
            if answer is None or self._clock_seconds() >= answer.until_seconds:
                size_bytes = await self._asked(repo, revision)
                self._keep((repo, revision), size_bytes)
        return self.known(repo, revision)

    async def _asked(self, repo: str, revision: str) -> int | None:
        try:
            answer = await run(
                (*self._question, repo, revision),
                deadline_seconds=DEADLINE_SECONDS,
                max_bytes=MAX_ANSWER_BYTES,
                environment=self._environment,
            )
        except NoAnswerError as error:
            # The rest is what a library had to say on the way.
            last = str(error).strip().rpartition("\n")[2]
            self._complain(repo, last[:MAX_COMPLAINT_LENGTH])
            return None
        digits = answer.output.strip()
        size_bytes = int(digits) if digits.isdigit() else 0
        if not 0 < size_bytes <= MAX_WEIGHT_BYTES:
            self._complain(repo, "its answer is no size")
            return None
        self._silent.discard(repo)
        return size_bytes

    def _complain(self, repo: str, error: str) -> None:
        if repo in self._silent:
            return
        self._silent.add(repo)
        extra = {"repo": repo, "endpoint": self.endpoint, "error": error}
        _LOGGER.warning("the Hub does not tell the size of a model", extra=extra)

    def _keep(self, key: tuple[str, str], size_bytes: int | None) -> None:
        kept_seconds = KEPT_FAILURE_SECONDS if size_bytes is None else KEPT_SECONDS
        before = self._answers.pop(key, None)
        if size_bytes is None and before is not None:
            size_bytes = before.size_bytes  # still the best that is known
        self._answers[key] = _Answer(size_bytes, self._clock_seconds() + kept_seconds)
        while len(self._answers) > MAX_KEPT:
            (repo, _), _ = self._answers.popitem(last=False)
            self._silent.discard(repo)


def _way(environ: Mapping[str, str]) -> dict[str, str]:
    """What leads a process to its libraries and to the Hub: nothing that is a secret."""
    passed = {name: environ[name] for name in _PASSED if name in environ}
    # A proxy that wants a password is not used.
    proxies = {name: environ[name] for name in _PROXIES if "@" not in environ.get(name, "@")}
    # Libraries that were installed for one user are found through HOME, which is not passed.
    return {**passed, **proxies, "PYTHONUSERBASE": site.getuserbase()}


def _without_login(url: str) -> str:
    scheme, separator, rest = url.rstrip("/").partition("://")
    place, slash, path = rest.partition("/")
    return scheme + separator + place.rpartition("@")[2] + slash + path
