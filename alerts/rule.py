"""What a rule and a group of rules are, and how each looks in a rule file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from alerts.timing import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alerts.site import Site
    from alerts.timing import Severity
    from dashboards.links import PanelLink


@dataclass(frozen=True, slots=True)
class AlertRule:
    """One alert.

    `subject` are the labels of its result that say what it is about: the link to the dashboard
    selects by them. `labels` come on top of the severity.
    """

    name: str
    severity: Severity
    expr: str
    summary: str
    description: str
    panel: PanelLink
    subject: tuple[str, ...]
    active_for_seconds: float | None = None
    keep_firing_seconds: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def as_yaml(self, site: Site) -> dict[str, Any]:
        """The rule as an entry of a rule file."""
        lengths = {
            "for": self.active_for_seconds,
            "keep_firing_for": self.keep_firing_seconds,
        }
        return {
            "alert": self.name,
            "expr": self.expr,
            **{key: duration(value) for key, value in lengths.items() if value is not None},
            "labels": {"severity": str(self.severity), **self.labels},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{site.repository_url}/blob/main/docs/runbooks/{self.name}.md",
                "dashboard_url": f"{site.grafana_url}/d/{self.panel.uid}{self._selection()}",
            },
        }

    def _selection(self) -> str:
        chosen = "".join(
            f"&var-{label}={{{{ $labels.{label} | urlquery }}}}" for label in self.subject
        )
        return f"?viewPanel={self.panel.panel_id}{chosen}"


@dataclass(frozen=True, slots=True)
class RecordingRule:
    """One series that is computed in advance."""

    record: str
    expr: str

    def as_yaml(self, site: Site) -> dict[str, Any]:  # noqa: ARG002 - as an alert's
        """The rule as an entry of a rule file."""
        return {"record": self.record, "expr": self.expr}


Rule: TypeAlias = AlertRule | RecordingRule


@dataclass(frozen=True, slots=True)
class RuleGroup:
    """Rules that are evaluated one after the other; `interval_seconds` if not at the usual pace."""

    name: str
    rules: tuple[Rule, ...]
    interval_seconds: float | None = None

    def as_yaml(self, site: Site) -> dict[str, Any]:
        """The group as an entry of a rule file."""
        pace = (
            {} if self.interval_seconds is None else {"interval": duration(self.interval_seconds)}
        )
        return {"name": self.name, **pace, "rules": [rule.as_yaml(site) for rule in self.rules]}
