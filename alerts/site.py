"""What differs between installations of the rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dashboards.queries import AVAILABILITY_TARGET

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Site:
    """Links in the alerts, the scrape job's name, the availability aimed at.

    `labels` are those of the PrometheusRule object itself, by which an operator selects it; the
    alerts do not carry them.

    Raises:
        ValueError: the target leaves nothing to burn, or everything.
    """

    repository_url: str = "https://github.com/vllm-agent/vllm-agent"
    grafana_url: str = "http://localhost:3000"
    job: str = "vllm-agent"
    availability_target: float = AVAILABILITY_TARGET
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.availability_target < 1:
            raise ValueError(f"availability target {self.availability_target} is not in (0, 1)")
