"""What a metric family is: its declaration, its subject and the limits of its label values."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Final, Generic, TypeAlias, TypeVar

from vllm_agent.lifecycle.states import LifecycleMode
from vllm_agent.snapshot import DURATION_BUCKETS_SECONDS, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vllm_agent.lifecycle.state_time import StateTime
    from vllm_agent.observations import Instant
    from vllm_agent.snapshot import ServerSnapshot

PREFIX: Final = "vllm_agent_"
MAX_LABEL_VALUE_CHARACTERS: Final = 128
"""A local user can invent processes and names; Prometheus keeps every label value in memory."""
_DIGEST_CHARACTERS: Final = 8
"""Keeps two long values apart that begin alike: equal series would spoil the scrape."""

SampleValue: TypeAlias = float | Histogram
Samples: TypeAlias = "Sequence[tuple[tuple[str, ...], SampleValue]]"
Subject = TypeVar("Subject")


class MetricType(StrEnum):
    """The type of a family as both text formats spell it."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family(Generic[Subject]):
    """One metric family and how to read its samples from what it is about.

    `subject_labels` name the subject itself (a server). `samples` yields, per series, the values
    of `labels`, which follow them, and the number; a histogram's samples hold a `Histogram` over
    the upper bounds `buckets`.
    """

    name: str
    type: MetricType
    help: str
    subject_labels: tuple[str, ...]
    labels: tuple[str, ...]
    samples: Callable[[Subject], Samples]
    modes: tuple[LifecycleMode, ...] = tuple(LifecycleMode)
    buckets: tuple[float, ...] = DURATION_BUCKETS_SECONDS

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels of every series, without a histogram's `le`."""
        return self.subject_labels + self.labels


@dataclass(frozen=True)
class ServerMoment:
    """A server at the time of a scrape: the subject of what grows with the clock."""

    server: ServerSnapshot
    now: Instant

    @cached_property
    def state_time(self) -> StateTime:
        """The seconds per state up to now."""
        life, is_desired = self.server.life, bool(self.server.desired_up)
        return life.state_time.advanced(life.state, is_desired=is_desired, now=self.now)


def label_value(text: str) -> str:
    """The text, or its beginning and a digest where it is longer than a label value may be."""
    if len(text) <= MAX_LABEL_VALUE_CHARACTERS:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    head = text[: MAX_LABEL_VALUE_CHARACTERS - _DIGEST_CHARACTERS - 1]
    return f"{head}~{digest[:_DIGEST_CHARACTERS]}"
