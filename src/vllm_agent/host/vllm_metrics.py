"""Reads the few facts the agent wants from a vLLM's /metrics page, as the page streams by.

The page has 50 kB and is read every 10 s from each server: blocks of whole lines are searched for
what is wanted, and no other line is ever cut out or parsed.
"""

from __future__ import annotations

import math
import re
from typing import Final

from vllm_agent.host.secret_shapes import without_shapes
from vllm_agent.host.vllm_answers import BadBodyError
from vllm_agent.observations import MetricsFacts

MAX_LINE_BYTES: Final = 64 * 1024
"""The longest line of a vLLM, cache_config_info, has about 2 kB. One unfinished line is kept."""

MAX_MODEL_NAMES: Final = 8
"""A page carries one name, that of its server; more is a page of something else."""

MAX_MODEL_NAME_LENGTH: Final = 128
"""Names become label values; a longer one is left out, since half a name would be another one."""

_START_TIME: Final = b"\nprocess_start_time_seconds"
_SLEEP_STATE: Final = b"\nvllm:engine_sleep_state{"
_MODEL_LABEL: Final = b'model_name="'

# Atomic groups (?>...) and possessive quantifiers: a hostile line costs its length, not the square.
_LINE: Final = re.compile(
    rb"[ \t]*+(?:#.*)?"
    rb"|(?:[a-zA-Z_:][a-zA-Z0-9_:]*+(?>\{[^\n]*\})?|(?>\{[^\n]*\}))"
    rb"[ \t]++[-+]?(?:[0-9.][-+0-9.eExXa-fA-F]*+|[Ii]nf|[Nn]a[Nn])(?:[ \t].*)?"
)
_START_TIME_LINE: Final = re.compile(
    rb"\nprocess_start_time_seconds(?>\{[^\n]*\})?[ \t]++([^\s]++)"
)
_AWAKE_LINE: Final = re.compile(
    rb'\nvllm:engine_sleep_state\{(?>[^\n]*?sleep_state="awake")(?>[^\n]*\})[ \t]++([^\s]++)'
)
_MODEL_LINE: Final = re.compile(rb'\nvllm:[^{\s]*+\{(?>[^\n]*?\bmodel_name=")((?:[^"\\\n]|\\.)*+)"')
_ESCAPED: Final = re.compile(r"\\(.)")


class MetricsScanner:
    """Takes a page in pieces of any size; `facts` tells what was on it."""

    def __init__(self) -> None:
        # A block of lines starts with a newline, so that one search finds the start of a line.
        self._unfinished = bytearray(b"\n")
        self._is_exposition = True
        self._has_lines = False
        self._start_time_seconds: float | None = None
        self._is_sleeping: bool | None = None
        self._model_labels: dict[bytes, str | None] = {}

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
        names = (name for name in self._model_labels.values() if name is not None)
        return MetricsFacts(self._start_time_seconds, self._is_sleeping, tuple(names))

    def _scan(self, block: bytes) -> None:
        self._is_exposition = _is_line(block, block.rfind(b"\n") + 1, len(block))
        if not self._has_lines:
            self._has_lines = True
            self._is_exposition &= _is_line(block, 1, block.find(b"\n", 1))
        if self._start_time_seconds is None and _START_TIME in block:
            self._start_time_seconds = _start_time_seconds(block)
        self._scan_sleep_states(block)
        self._scan_model_names(block)

    def _scan_sleep_states(self, block: bytes) -> None:
        start = block.find(_SLEEP_STATE)
        while start >= 0:
            line = _AWAKE_LINE.match(block, start)
            if line is not None:
                # Engines sleep together; one that sleeps must not be sent a request.
                self._is_sleeping = bool(self._is_sleeping) or _value(line[1]) == 0
            start = block.find(_SLEEP_STATE, start + 1)

    def _scan_model_names(self, block: bytes) -> None:
        # Nearly every line carries the name, and it is the same one: counting is cheapest.
        unknown = block.count(_MODEL_LABEL) - sum(map(block.count, self._model_labels))
        start = 0
        while unknown > 0 and len(self._model_labels) < MAX_MODEL_NAMES:
            line = _MODEL_LINE.search(block, start)
            if line is None:
                return
            start = line.end()
            label = _MODEL_LABEL + line[1] + b'"'
            if label not in self._model_labels:
                self._model_labels[label] = _label_value(line[1])
                unknown -= block.count(label)


def _is_line(block: bytes, start: int, end: int) -> bool:
    return _LINE.fullmatch(block, start, end if end >= 0 else len(block)) is not None


def _start_time_seconds(block: bytes) -> float | None:
    line = _START_TIME_LINE.search(block)
    value = None if line is None else _value(line[1])
    # A start time of 0 is what exporters write where they do not know it.
    return value if value is not None and math.isfinite(value) and value > 0 else None


def _value(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _label_value(escaped: bytes) -> str | None:
    text = escaped.decode("utf-8", "replace")
    value = _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], text)
    value = without_shapes(value)
    # Nothing of vLLM is unprintable; a terminal or a label would have to escape it again.
    return value if value.isprintable() and 0 < len(value) <= MAX_MODEL_NAME_LENGTH else None
