"""The generated files: the rules in both forms, and the page of reasons for the runbooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from alerts.rules import rule_groups
from alerts.site import Site
from alerts.timing import Timing
from vllm_agent.lifecycle.reasons import REASON_TEXT

if TYPE_CHECKING:
    from collections.abc import Mapping

_ROOT: Final = Path(__file__).parent.parent
RULES_PATH: Final = _ROOT / "alerts" / "vllm-agent.rules.yml"
PROMETHEUS_RULE_PATH: Final = _ROOT / "alerts" / "vllm-agent.prometheusrule.yml"
REASONS_PATH: Final = _ROOT / "docs" / "runbooks" / "reasons.md"

_HEADER: Final = (
    "# Written by `python -m alerts`; the reasons for each choice are in alerts/*.py.\n"
)
_DEFAULT_TIMING: Final = Timing()
# Wider than any line: a URL or a template that YAML folds is hard to read and to search for.
_LINE_WIDTH: Final = 10_000


class _RulesDumper(yaml.SafeDumper):
    """Keeps expressions on their own lines and indents list items, as rule files are written."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - PyYAML's signature
        super().increase_indent(flow, indentless=False)


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_RulesDumper.add_representer(str, _represent_text)


def generated_files() -> dict[Path, str]:
    """Every generated file and the text that belongs into it."""
    site = Site()
    return {
        RULES_PATH: rules_text(site),
        PROMETHEUS_RULE_PATH: prometheus_rule_text(site),
        REASONS_PATH: reasons_text(),
    }


def rules_text(site: Site, timing: Timing = _DEFAULT_TIMING) -> str:
    """The rule file of Prometheus for one site."""
    return _yaml(_groups(site, timing))


def prometheus_rule_text(site: Site, timing: Timing = _DEFAULT_TIMING) -> str:
    """The same rules as an object for the Prometheus operator."""
    labels = {"app.kubernetes.io/name": "vllm-agent", **site.labels}
    return _yaml(
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {"name": "vllm-agent", "labels": labels},
            "spec": _groups(site, timing),
        }
    )


def reasons_text() -> str:
    """The table of failure reasons, as the product itself explains them."""
    rows = "\n".join(
        f"| `{reason}` | {text.meaning} | {text.advice} |" for reason, text in REASON_TEXT.items()
    )
    return (
        "# Reasons of a failure or crash\n\n"
        "The label `reason`, what it means and what to do. "
        "Written by `python -m alerts` from the agent's own texts.\n\n"
        f"| reason | meaning | what to do |\n|---|---|---|\n{rows}\n"
    )


def _groups(site: Site, timing: Timing) -> dict[str, Any]:
    return {"groups": [group.as_yaml(site) for group in rule_groups(site, timing)]}


def _yaml(document: Mapping[str, Any]) -> str:
    return _HEADER + yaml.dump(document, Dumper=_RulesDumper, sort_keys=False, width=_LINE_WIDTH)
