"""Reads the few facts the agent wants from a vLLM's /metrics page, as the page streams by.

The page has 50 kB and is read every 10 s from each server: blocks of whole lines are searched for
what is wanted, and no other line is ever cut out or parsed.
"""

from __future__ import annotations

import math
import operator
import re
from typing import TYPE_CHECKING, Final

from vllm_agent.host.secret_shapes import without_shapes
from vllm_agent.host.vllm_answers import BadBodyError
from vllm_agent.observations import EngineFacts, MetricsFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LINE_BYTES: Final = 64 * 1024
"""The longest line of a vLLM, cache_config_info, has about 2 kB. One unfinished line is kept."""

MAX_MODEL_NAMES: Final = 8
"""A page carries one name, that of its server; more is a page of something else."""

MAX_MODEL_NAME_LENGTH: Final = 128
"""Names become label values; a longer one is left out, since half a name would be another one."""

_START_TIME: Final = b"\nprocess_start_time_seconds"
_AWAKE_LABEL: Final = b'sleep_state="awake"'
_ENGINE_SAMPLES: Final = (
    ("iterations", b"vllm:iteration_tokens_total_count", operator.add),
    ("prompt_tokens", b"vllm:prompt_tokens_total", operator.add),
    ("generation_tokens", b"vllm:generation_tokens_total", operator.add),
    ("requests_running", b"vllm:num_requests_running", operator.add),
    ("requests_waiting", b"vllm:num_requests_waiting", operator.add),
    ("kv_cache_usage_ratio", b"vllm:kv_cache_usage_perc", max),
)

# Atomic groups (?>...) and possessive quantifiers: a hostile line costs its length, not the square.
_LINE: Final = re.compile(
    rb"[ \t]*+(?:#.*)?"
    rb"|(?:[a-zA-Z_:][a-zA-Z0-9_:]*+(?>\{[^\n]*\})?|(?>\{[^\n]*\}))"
    rb"[ \t]++[-+]?(?:[0-9.][-+0-9.eExXa-fA-F]*+|[Ii]nf|[Nn]a[Nn])(?:[ \t].*)?"
)
_START_TIME_LINE: Final = re.compile(
    rb"\nprocess_start_time_seconds(?>\{[^\n]*\})?[ \t]++([^\s]++)"
)
_LABELS_AND_VALUE: Final = re.compile(
    rb'\{((?:[^"}\n]++|"(?:[^"\\\n]++|\\.)*+")*+)\}[ \t]++([^\s]++)'
)
_MODEL_NAME: Final = re.compile(rb'\bmodel_name="((?:[^"\\\n]|\\.)*+)"')
_ESCAPED: Final = re.compile(r"\\(.)")


class _Samples:
    """Finds the samples of one name as a page streams by, and folds their values into one.

    They all stand before the next comment, so after that nothing is searched any more. Only those
    with `label` count.
    """

    __slots__ = ("_fold", "_has_begun", "_is_readable", "_label", "_start", "_value", "is_over")

    def __init__(
        self, name: bytes, fold: Callable[[float, float], float], label: bytes = b""
    ) -> None:
        self._start = b"\n%b{" % name
        self._fold = fold
        self._label = label
        self._value: float | None = None
        self._is_readable = True
        self._has_begun = False
        self.is_over = False

    @property
    def value(self) -> float | None:
        """None where there is no sample, or one of them is no finite number."""
        is_told = self._is_readable and self._value is not None and math.isfinite(self._value)
        return self._value if is_told else None

    def scan(self, block: bytes) -> Iterator[bytes]:
        """Takes the next block of whole lines; gives the labels of the samples in it."""
        first = 0 if self._has_begun else block.find(self._start)
        if first < 0:
            return
        end = block.find(b"\n#", first)
        self._has_begun, self.is_over = True, end >= 0
        limit = end if end >= 0 else len(block)
        place = block.find(self._start, first, limit)
        while place >= 0:
            labels_at = place + len(self._start) - 1
            sample = _LABELS_AND_VALUE.match(block, labels_at)
            if sample is not None:
                yield sample[1]
                if self._label in sample[1]:
                    self._take(_value(sample[2]))
            place = block.find(self._start, labels_at, limit)

    def _take(self, value: float | None) -> None:
        if value is None:
            self._is_readable = False
        else:
            self._value = value if self._value is None else self._fold(self._value, value)


class MetricsScanner:
    """Takes a page in pieces of any size; `facts` tells what was on it."""

    def __init__(self) -> None:
        # A block of lines starts with a newline, so that one search finds the start of a line.
        self._unfinished = bytearray(b"\n")
        self._is_exposition = True
        self._has_lines = False
        self._start_time_seconds: float | None = None
        # Engines sleep together; one that sleeps must not be sent a request.
        self._awake = _Samples(b"vllm:engine_sleep_state", min, label=_AWAKE_LABEL)
        self._engine = {fact: _Samples(name, fold) for fact, name, fold in _ENGINE_SAMPLES}
        self._wanted = [self._awake, *self._engine.values()]
        self._model_names: dict[bytes, str | None] = {}

    def feed(self, piece: bytes) -> None:
        """Take the next piece; once something is no metrics page, the rest is ignored."""
        if not self._is_exposition:
            return
        end = piece.rfind(b"\n")
        if end < 0:
            self._unfinished += piece
            self._is_exposition = len(self._unfinished) <= MAX_LINE_BYTES
            return
        block = b"".join((self._unfinished, memoryview(piece)[:end]))
        self._unfinished = bytearray(b"\n" + piece[end + 1 :])
        self._scan(block)

    def facts(self) -> MetricsFacts:
        """What the page says.

        Raises:
            BadBodyError: this was not a whole metrics page in one of Prometheus' text formats.
        """
        if not self._is_exposition:
            raise BadBodyError("is not a metrics page in a text format of Prometheus")
        if bytes(self._unfinished).strip() not in {b"", b"# EOF"}:
            raise BadBodyError("ends in the middle of a line")
        names = (name for name in self._model_names.values() if name is not None)
        awake = self._awake.value
        return MetricsFacts(
            process_start_time_seconds=self._start_time_seconds,
            is_sleeping=None if awake is None else awake == 0,
            model_names=tuple(names),
            engine=self._engine_facts(),
        )

    def _engine_facts(self) -> EngineFacts | None:
        told = {fact: samples.value for fact, samples in self._engine.items()}
        return EngineFacts(**told) if any(value is not None for value in told.values()) else None

    def _scan(self, block: bytes) -> None:
        self._is_exposition = _is_line(block, block.rfind(b"\n") + 1, len(block))
        if not self._has_lines:
            self._has_lines = True
            self._is_exposition &= _is_line(block, 1, block.find(b"\n", 1))
        if self._start_time_seconds is None and _START_TIME in block:
            self._start_time_seconds = _start_time_seconds(block)
        for samples in self._wanted:
            for labels in samples.scan(block):
                self._note_model_name(labels)
        self._wanted = [samples for samples in self._wanted if not samples.is_over]

    def _note_model_name(self, labels: bytes) -> None:
        found = _MODEL_NAME.search(labels)
        if found is None or found[1] in self._model_names:
            return
        if len(self._model_names) < MAX_MODEL_NAMES:
            self._model_names[found[1]] = _label_value(found[1])


def _is_line(block: bytes, start: int, end: int) -> bool:
    return _LINE.fullmatch(block, start, end if end >= 0 else len(block)) is not None


def _start_time_seconds(block: bytes) -> float | None:
    line = _START_TIME_LINE.search(block)
    value = None if line is None else _value(line[1])
    # A start time of 0 is what exporters write where they do not know it.
    return value if value is not None and value > 0 else None


def _value(text: bytes) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _label_value(escaped: bytes) -> str | None:
    text = escaped.decode("utf-8", "replace")
    value = _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], text)
    value = without_shapes(value)
    # Nothing of vLLM is unprintable; a terminal or a label would have to escape it again.
    return value if value.isprintable() and 0 < len(value) <= MAX_MODEL_NAME_LENGTH else None
