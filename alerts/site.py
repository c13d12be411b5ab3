"""What differs between installations of the rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from dashboards.queries import AVAILABILITY_TARGET

if TYPE_CHECKING:
    from collections.abc import Mapping

_URL: Final = re.compile(r"https?://[^\x00-\x20\x7f/?#{}]+(/[^\x00-\x20\x7f/?#{}]+)*")
"""What a path can be put behind, and a template of Prometheus may contain."""

_LABEL_NAME: Final = re.compile(
    r"(?:(?=[^/]{1,253}/)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?",
    re.ASCII,
)
_LABEL_VALUE: Final = re.compile(r"(?:[A-Za-z0-9](?:[-\w.]{0,61}[A-Za-z0-9])?)?", re.ASCII)
"""Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/."""


@dataclass(frozen=True, slots=True)
class Site:
    """Links in the alerts, the scrape job's name, the availability aimed at.

    `labels` are those of the PrometheusRule object itself, by which an operator selects it; the
    alerts do not carry them.

    Raises:
        ValueError: Prometheus, who follows a link, or Kubernetes would not understand one of them;
            or the target leaves nothing to burn, or everything.
    """

    repository_url: str = "https://github.com/vllm-agent/vllm-agent"
    grafana_url: str = "http://localhost:3000"
    job: str = "vllm-agent"
    availability_target: float = AVAILABILITY_TARGET
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for url in (self.repository_url, self.grafana_url):
            if not _URL.fullmatch(url):
                raise ValueError(
                    f"{url!r} is not http(s)://HOST or http(s)://HOST/PATH, without ? # {{ }}"
                )
        if not self.job.strip() or not self.job.isprintable() or set(self.job) & {'"', "\\"}:
            raise ValueError(f"job {self.job!r} is empty, or has a quote, a backslash or a control")
        if not 0 < self.availability_target < 1:
            raise ValueError(f"availability target {self.availability_target} is not in (0, 1)")
        for name, value in self.labels.items():
            if not (_LABEL_NAME.fullmatch(name) and _LABEL_VALUE.fullmatch(value)):
                raise ValueError(f"{name}={value} is no label of Kubernetes")
