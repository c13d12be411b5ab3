"""Which GPUs of the host a server will see, as CUDA and vLLM make them out. Pure.

Sources: CUDA_VISIBLE_DEVICES in the CUDA Programming Guide; `_parse_visible_devices` of torch.cuda.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.observations import GpuVendor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from vllm_agent.observations import Gpu

CUDA: Final = "CUDA_VISIBLE_DEVICES"
_OF_CONTAINER: Final = "NVIDIA_VISIBLE_DEVICES"
_OF_AMD: Final = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_OF_CPU_BUILD: Final = "VLLM_CPU_"
_NO_DEVICES: Final = frozenset({"", "-1", "none", "void", "nodevfiles"})
_NOT_NAMED: Final = _NO_DEVICES | {"all"}  # as the container toolkit reads it
_INDEX: Final = re.compile(r"\s*\+?(\d{1,4})")  # what follows the digits, strtoul(3) leaves out
_DEVICE: Final = "GPU-"
_INSTANCE: Final = "MIG-"
_OLD_INSTANCE: Final = re.compile(r"MIG-(GPU-[0-9a-f-]+)/\d+/\d+")


@dataclass(frozen=True, slots=True)
class VisibleGpus:
    """`count` GPUs out of `candidates`: the first ones, if it is known that they are `is_ordered`.

    `count` is None where that cannot be told.
    """

    candidates: tuple[Gpu, ...]
    count: int | None
    is_ordered: bool


def are_hidden(environ: Mapping[str, str]) -> bool:
    """Whether a server is not to use a GPU: it is shown none, or has settings of a CPU build."""
    hides = environ.get(CUDA, "all").strip().lower() in _NO_DEVICES
    return hides or any(name.startswith(_OF_CPU_BUILD) for name in environ)


def named(environ: Mapping[str, str]) -> str:
    """The variable that names GPUs for a server, as NAME=VALUE; empty where none does."""
    for name in (CUDA, *_OF_AMD, _OF_CONTAINER):
        if environ.get(name, "").strip().lower() not in _NOT_NAMED:
            return f"{name}={environ[name]}"
    return ""


def visible_gpus(devices: Sequence[Gpu], environ: Mapping[str, str]) -> VisibleGpus:
    """What a server with that environment sees of these devices; a lost one is not seen."""
    of_nvidia = [gpu for gpu in devices if gpu.vendor is GpuVendor.NVIDIA]
    if not of_nvidia or any(environ.get(name) for name in _OF_AMD):
        return _of_amd(devices)
    nvidia = [gpu for gpu in of_nvidia if not gpu.is_lost]
    cards = tuple(gpu for gpu in nvidia if gpu.parent_uuid is None)
    # The fastest come first in CUDA, if it is not told to go by their places; alike, all are.
    are_alike = len({card.name for card in cards}) <= 1
    is_ordered = are_alike or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    asked = environ.get(CUDA)
    if asked is None:
        return VisibleGpus(cards, len(cards), is_ordered)
    tokens = [token.strip() for token in asked.split(",")]
    if tokens[0].startswith((_DEVICE, _INSTANCE)):
        found = tuple(_by_uuid(tokens, nvidia))
        return VisibleGpus(found, len(found), is_ordered=True)
    found = tuple(_by_index(tokens, cards))
    return VisibleGpus(found if is_ordered else cards, len(found), is_ordered)


def _of_amd(devices: Iterable[Gpu]) -> VisibleGpus:
    """HIP has an order of its own, and makes several devices of one that is partitioned.

    What has no unique id is most often the graphics of a processor, which vLLM does not run on.
    """
    cards = tuple(
        gpu
        for gpu in devices
        if gpu.vendor is GpuVendor.AMD and not gpu.is_lost and gpu.uuid.startswith(_DEVICE)
    )
    return VisibleGpus(cards, None, is_ordered=False)


def _by_uuid(tokens: Sequence[str], nvidia: Sequence[Gpu]) -> Iterator[Gpu]:
    """The devices up to the first token that is none: CUDA stops there."""
    kind = tokens[0][: len(_DEVICE)]
    for token in tokens:
        # The beginning of one is enough where no other begins so.
        old = _OLD_INSTANCE.fullmatch(token)
        found = [gpu for gpu in nvidia if gpu.uuid.startswith(token)] or [
            gpu for gpu in nvidia if old is not None and gpu.uuid == old[1]
        ]
        if not token.startswith(kind) or len(found) != 1:
            return
        yield found[0]


def _by_index(tokens: Sequence[str], cards: Sequence[Gpu]) -> Iterator[Gpu]:
    by_index = {card.index: card for card in cards}
    for token in tokens:
        index = _INDEX.match(token)
        card = None if index is None else by_index.pop(str(int(index[1])), None)
        if card is None:
            return
        yield card
