"""Renders the Alertmanager configuration of docker-compose.yml: as shipped, but telling nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import yaml

ROOT: Final = Path(__file__).parents[2]
SHIPPED: Final = ROOT / "alerts" / "alertmanager.yml"
QUIET: Final = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"

_HEAD: Final = """\
# For docker-compose.yml: routes and inhibitions as in alerts/alertmanager.yml, where `make docs`
# copies them from, and receivers that tell nobody. Alerts show at http://localhost:9093 and in
# Grafana until you put receivers of your own at the end.

"""


def render() -> str:
    """The text of `QUIET`: what is between the head and the receivers of `SHIPPED`, as it is.

    Raises:
        ValueError: `receivers` is not the last key of `SHIPPED`, and something would get lost.
    """
    text = SHIPPED.read_text(encoding="utf-8")
    shipped = yaml.safe_load(text)
    if list(shipped)[-1] != "receivers":
        raise ValueError(f"receivers is not the last key of {SHIPPED}")
    start, end = text.index("\nroute:\n") + 1, text.index("\nreceivers:\n") + 1
    names = "".join(f"  - name: {receiver['name']}\n" for receiver in shipped["receivers"])
    return f"{_HEAD}{text[start:end]}receivers:\n{names}"
