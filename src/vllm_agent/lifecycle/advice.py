"""What to do about a failure, as specific as what is known of the server. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vllm_agent.lifecycle.reasons import REASON_TEXT
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from vllm_agent.lifecycle.reasons import Reason

_START_AGAIN: Final = "The agent leaves it down until 'vllm-agent start {server}'."
_BRING_BACK: Final = "'vllm-agent set-model {server} {model_before}' brings back the model before."
_HUB: Final = "https://huggingface.co"

_SUSPECTS: Final = MappingProxyType(
    {
        Stage.DOWNLOAD: "the network to the Hub, and the disk of the model cache",
        Stage.INIT: "ranks that wait for each other (NCCL_DEBUG=INFO)",
        Stage.LOAD_WEIGHTS: "the disk, or the network file system, that holds the checkpoint",
        Stage.COMPILE: "the compiler's processes, and the disk of VLLM_CACHE_ROOT",
        Stage.WARMUP: "ranks that wait for each other (NCCL_DEBUG=INFO)",
    }
)
"""What a load most often hangs at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of the server that failed; empty or None where it is not.

    `hub_id` and `revision` are of a model on the Hub, `folder` is the path of one that is not.
    `holder` is who holds its port, or GPU memory. `logged` is the server's name where lines of its
    log are kept, `xid` the number of an error that the driver told. A load that stalled did so in
    `stage`, `quiet` is for how long, and `limit` is how long it may, as `limit_key` of the
    configuration says. `server` is the name of one that the agent manages, `is_left_down` whether
    it is started no more without being asked, `model_before` the model that was replaced by one
    that has not served. Names of servers, and `model_before`, are as a shell needs them.
    """

    hub_id: str = ""
    revision: str = ""
    folder: str = ""
    port: str = ""
    holder: str = ""
    logged: str = ""
    xid: str = ""
    stage: Stage | None = None
    quiet: str = ""
    limit: str = ""
    limit_key: str = ""
    server: str = ""
    is_left_down: bool = False
    model_before: str = ""


_FACTS: Final = tuple(field.name for field in fields(Facts) if field.name != "is_left_down")

MAX_FACT_CHARACTERS: Final = 200
"""Facts come from other people's command lines. A name on the Hub has at most 96 characters, and of
a path so many say enough."""


def advice_on(reason: Reason, facts: Facts) -> str:
    """What an operator does about a failure, as specific as the facts allow."""
    text, known = REASON_TEXT[reason], _known(facts)
    templates = (*text.managed, *text.specific) if facts.server else text.specific
    advice = next((filled for one in templates if (filled := _filled(one, known))), text.advice)
    commands = [_START_AGAIN] if facts.is_left_down else []
    if facts.model_before:
        commands.append(_BRING_BACK)
    return " ".join((advice, *(_filled(command, known) for command in commands)))


def _filled(template: str, known: dict[str, str]) -> str:
    """The template with its facts; empty where one of them is unknown."""
    try:
        return template.format_map(known)
    except KeyError:
        return ""


def _known(facts: Facts) -> dict[str, str]:
    """The facts that are there, and what follows from them."""
    known = {name: _plain(value) for name in _FACTS if (value := getattr(facts, name))}
    if facts.hub_id:
        known["page"] = f"{_HUB}/{known['hub_id']}"
        known["download"] = f"hf download {known['hub_id']}"
        if facts.revision:
            known["page"] += f"/tree/{known['revision']}"
            known["download"] += f" --revision {known['revision']}"
    if facts.stage is not None:
        known["suspect"] = _SUSPECTS[facts.stage]
    return known


def _plain(text: str) -> str:
    """What others chose, fit for a line of a terminal: printable and short."""
    if len(text) > MAX_FACT_CHARACTERS:
        text = f"{text[:MAX_FACT_CHARACTERS]}..."
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)
