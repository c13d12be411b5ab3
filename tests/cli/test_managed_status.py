"""`status` and `history` of managed servers."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from rich.console import Console

from tests.cli.conftest import said
from tests.cli.managed_servers import BUNDLE, alive, backing_off, given_up, stopped
from tests.expose.snapshots import MANAGED, managed_server, server
from tests.expose.snapshots import backing_off as kept
from vllm_agent.cli import terminal
from vllm_agent.cli.managed_lines import outlook
from vllm_agent.cli.operation import is_vain
from vllm_agent.cli.server_details import detail_rows
from vllm_agent.cli.status_table import remarks
from vllm_agent.expose.json_view import server_view
from vllm_agent.lifecycle.management import StopOutcome
from vllm_agent.lifecycle.server_life import Launch
from vllm_agent.observations import Instant
from vllm_agent.store import History, LaunchRecord

OLD = MANAGED.model


def rows(cli) -> dict[str, str]:
    """The lines of `status llama` by their labels."""
    lines = (line.partition("  ") for line in cli("status", "llama").out.splitlines())
    return {label: text.strip() for label, _, text in lines}


def test_one_that_runs(cli, served) -> None:
    served.show(managed_server())

    shown = rows(cli)

    assert shown["server"] == "llama (managed)"
    assert shown["supervised"] == "by this agent"
    assert shown["wanted"] == f"up with {OLD}"
    absent = {"next restart", "given up", "dry run", "last stop", "model before", "evidence in"}
    assert not absent & shown.keys()


def test_one_that_is_wanted_down(cli, served) -> None:
    served.show(stopped(StopOutcome(4, 30.2, is_forced=True)))

    shown = rows(cli)

    assert shown["wanted"] == "down until: vllm-agent start llama"
    assert shown["last stop"] == "launch 4, with SIGKILL after 30 s"


def test_one_that_is_to_be_started_again(cli, served) -> None:
    served.show(backing_off())

    assert rows(cli)["next restart"] in {"in 7s", "in 8s"}


def test_one_whose_start_is_due(cli, served) -> None:
    served.show(kept())

    assert rows(cli)["next restart"] == "now"


def test_one_that_only_tells_of_restarts(cli, served) -> None:
    served.show(backing_off(is_dry_run=True))

    shown = rows(cli)

    assert shown["dry run"] == "restarts are only logged and counted, as restart.dry_run asks"


def test_one_that_was_given_up(cli, served) -> None:
    served.show(given_up(model="org/new", model_before="org/o'ld"))

    shown = rows(cli)

    assert shown["given up"] == "the agent starts it no more until somebody asks for it"
    assert cli("status", "llama").out.count("'vllm-agent start llama'") == 1
    assert shown["evidence in"] == BUNDLE
    assert shown["wanted"] == "up with org/new"
    assert shown["model before"].endswith("vllm-agent set-model llama 'org/o'\"'\"'ld'")


def test_a_pipe_has_mode_wish_and_next_restart_last(cli, served) -> None:
    served.show(
        server("watched"), replace(backing_off(), name="back"), replace(stopped(), name="down")
    )

    cells = {line.split()[0]: line.split()[14:] for line in said(cli("status"))}

    assert cells["SERVER"] == ["MODE", "WANTED", "NEXT"]
    assert cells["watched"] == ["external", "-", "-"]
    assert cells["back"] in (["managed", "up", "7s"], ["managed", "up", "8s"])
    assert cells["down"] == ["managed", "down", "-"]


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (managed_server(), ()),
        (given_up(), ("given up",)),
        (backing_off(is_dry_run=True), ("dry run",)),
        (server(), ()),
    ],
)
def test_a_terminal_has_remarks(shown, words) -> None:
    assert remarks(server_view(shown), time.time()) == words


def test_a_terminal_tells_when_it_is_started_again() -> None:
    at = server_view(backing_off())
    assert at["managed"] is not None
    planned = at["managed"]["next_restart_timestamp_seconds"]
    assert planned is not None

    assert remarks(at, planned - 4.5) == ("restart in 4s",)


@pytest.mark.parametrize(("columns", "has_mode"), [(200, True), (100, False)])
def test_a_wide_terminal_has_the_mode(columns, has_mode, monkeypatch) -> None:
    monkeypatch.setattr(terminal, "width", lambda: columns)
    drawing = terminal._table([server_view(alive())], time.time())

    lines = Console(width=columns).render_lines(drawing)
    heading = "".join(part.text for part in lines[0]).split()
    assert ("MODE" in heading) == has_mode
    assert "WANTED" not in heading


def test_an_agent_of_an_older_version_tells_none_of_it() -> None:
    view = server_view(given_up())
    del view["managed"]  # type: ignore[misc]

    assert remarks(view, 0.0) == ()
    assert not {"wanted", "given up"} & {row.label for row in detail_rows(view, None, 0.0)}
    assert outlook(view) == ""
    assert not is_vain(view)


def test_history_says_where_the_evidence_is(cli, served) -> None:
    ending = given_up().life.last_ending
    launch = Launch(2, None, Instant(0.0, 1_750_000_000.0))
    served.show(managed_server())
    served.past = History((), (LaunchRecord(launch, ending),))

    lines = cli("history", "llama").out.splitlines()

    assert lines[-1] == f"    evidence: {BUNDLE}"
