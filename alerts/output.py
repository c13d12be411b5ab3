"""The generated files of this folder: the rule file, and the page of reasons for the runbooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from alerts.rules import AlertRule, Site, alert_rules
from vllm_agent.lifecycle.reasons import REASON_TEXT

_ROOT: Final = Path(__file__).parent.parent
RULES_PATH: Final = _ROOT / "alerts" / "vllm-agent.rules.yml"
REASONS_PATH: Final = _ROOT / "docs" / "runbooks" / "reasons.md"

# Wider than any line: a URL or a template that YAML folds is hard to read and to search for.
_LINE_WIDTH = 10_000


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
    return {RULES_PATH: rules_text(Site()), REASONS_PATH: reasons_text()}


def rules_text(site: Site) -> str:
    """The Prometheus rule file for one site."""
    document = {
        "groups": [
            {"name": "vllm-agent", "rules": [_rule(rule, site) for rule in alert_rules(site)]}
        ]
    }
    body = yaml.dump(document, Dumper=_RulesDumper, sort_keys=False, width=_LINE_WIDTH)
    return f"# Written by `python -m alerts`; the reasons for each choice are in rules.py.\n{body}"


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


def _rule(rule: AlertRule, site: Site) -> dict[str, Any]:
    timing = {"for": rule.active_for, "keep_firing_for": rule.keep_firing_for}
    return {
        "alert": rule.name,
        "expr": rule.expr,
        **{key: duration for key, duration in timing.items() if duration is not None},
        "labels": {"severity": "critical"},
        "annotations": {
            "summary": rule.summary,
            "description": rule.description,
            **rule.links(site),
        },
    }
