"""`status`: one look at every server or at one, for people, for pipes and for programs."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal
from tests.expose.snapshots import crashed_server, fresh_server, life, server
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Instant
from vllm_agent.snapshot import CollectorSnapshot


def ago(seconds: float) -> Instant:
    return Instant(0.0, time.time() - seconds)


def test_a_pipe_gets_plain_columns(cli, served) -> None:
    served.show(
        server(life=life(entered=ago(192)), last_check=ago(2)),
        replace(crashed_server(), url="http://gpu7:8000"),
        fresh_server("new"),
    )

    outcome = cli("status")

    assert (outcome.code, outcome.err) == (0, "")
    lines = [line.split() for line in outcome.out.splitlines()]
    assert lines[0] == [
        *("SERVER", "STATE", "SINCE", "MODEL", "VERSION"),
        *("REASON", "RESTARTS", "CRASHES", "CHECKED", "URL"),
    ]
    assert {len(line) for line in lines} == {10}
    crashed, new, running = lines[1:]
    assert running[:3] == ["llama", "running", "3m12s"]
    assert running[3:8] == ["meta-llama/Llama-3.1-8B-Instruct", "0.27.1", "-", "0", "0"]
    assert crashed[5:8] == ["unreachable", "1", "2"]
    assert crashed[9] == "http://gpu7:8000"
    assert new[1:6] == ["unknown", new[2], "-", "-", "-"]
    assert outcome.out.isascii()


def test_what_is_wrong_comes_first_and_then_the_order_of_the_configuration(cli, served) -> None:
    phases = {
        "b-well": Phase.READY,
        "b-loading": Phase.LOADING,
        "b-failed": Phase.UNREADY,
        "b-stopped": Phase.ABSENT,
        "b-crashed": Phase.CRASHED,
        "a-failed": Phase.LOST,
        "a-well": Phase.READY,
    }
    served.show(*(server(name, life=life(phase)) for name, phase in phases.items()))

    names = [line.split()[0] for line in cli("status").out.splitlines()[1:]]

    assert names == [
        *("b-crashed", "b-failed", "a-failed", "b-stopped", "b-loading"),
        *("b-well", "a-well"),
    ]
    as_json = json.loads(cli("status", "--json").out)["servers"]
    assert [s["name"] for s in as_json] == list(phases)


def test_json_is_the_answer_of_the_api(cli, served) -> None:
    outcome = cli("status", "--json")
    assert [s["name"] for s in json.loads(outcome.out)["servers"]] == ["llama", "qwen"]

    assert json.loads(cli("status", "qwen", "--json").out)["state"] == "crashed"
    served.show()
    assert cli("status", "--json").code == 0


def test_no_servers_says_what_to_write(cli, served) -> None:
    served.show()

    outcome = cli("status")

    assert (outcome.code, outcome.out) == (0, "")
    assert "no server is configured" in outcome.err
    assert "--config.file" in outcome.err


def test_an_agent_that_does_not_see_everything_says_so(cli, served) -> None:
    broken = CollectorSnapshot("store", is_up=False, detail="the disk is full")
    served.show(server(), is_ready=False, collectors=(broken,))

    err = cli("status").err

    assert "first look" in err
    assert "store does not work: the disk is full" in err


def test_one_server_in_full(cli, served) -> None:
    crashed = crashed_server()
    changed = replace(crashed.life, detail="its port has refused", entered=ago(5))
    served.show(replace(crashed, life=changed, model_names=("a", "b"), last_check=ago(3)))

    outcome = cli("status", "qwen")

    assert outcome.code == 0
    lines = dict(line.split("  ", 1) for line in outcome.out.splitlines())
    said = {label: text.strip() for label, text in lines.items()}
    assert said["server"] == "qwen (external)"
    assert said["state"].startswith("crashed for 5s, since 20")
    assert said["reason"] == "unreachable"
    assert said["detail"] == "its port has refused"
    assert said["advice"] == REASON_TEXT[Reason.UNREACHABLE].advice
    assert said["model"].endswith("also a, b")
    assert said["restarts"] == "1 outside"
    assert said["crashes"].startswith("2 unreachable (last 2025-06-15")
    assert said["budget"].startswith("LIMIT REACHED, 0 of 3 restarts left")
    assert said["last ending"].startswith("launch 2 crashed, unreachable, at 2025-06-15")
    assert said["last check"] == "3s ago, 7 failed in a row"
    assert said["probe health"].startswith(
        "failed: refused, 20.0 ms, 12 sent, 17 failed (12 refused"
    )
    assert said["probe models"].startswith("ok, 20.0 ms")


def test_a_server_nobody_looked_at(cli, served) -> None:
    served.show(fresh_server("new"))

    out = cli("status", "new").out

    assert "no result yet" in out
    assert "none yet" in out
    assert "advice" not in out
    assert "last ending" not in out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"maintenance_until_unix_seconds": float("inf")}, "until it is switched off"),
        ({"maintenance_until_unix_seconds": 1_750_000_000.0}, "until 2025-06-15"),
        ({"is_sleeping": True}, "running, sleeping"),
    ],
)
def test_what_is_special_about_a_server(cli, served, changes, told) -> None:
    served.show(server(life=life(**changes)))

    assert told in cli("status", "llama").out


def test_a_terminal_of_80_columns_shows_what_matters(served) -> None:
    served.show(
        server(last_check=ago(2), life=life(entered=ago(192), is_sleeping=True)),
        crashed_server("qwen-2.5-coder"),
    )

    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], columns=80) as terminal:
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert "\x1b[" in shown.raw, "a terminal gets colour"
    assert max(map(len, shown.lines)) <= 80
    assert "2 servers, 1 crashed, 1 running" in shown.text
    rows = {line.split()[0]: line for line in shown.lines if line}
    assert "REASON" in rows["SERVER"]
    assert "URL" not in rows["SERVER"]
    assert "sleeping" in rows["llama"]
    assert "unreachable, restart limit" in rows["qwen-2.5-coder"]
    assert not [c for c in shown.text if c in "─│┃━┏╭"], "no boxes"


def test_a_reason_is_never_cut(served) -> None:
    crashed = crashed_server("a-name-that-needs-a-lot-of-room-for-itself")
    changed = replace(
        crashed.life,
        reason=Reason.KV_CACHE_TOO_SMALL,
        maintenance_until_unix_seconds=float("inf"),
    )
    served.show(replace(crashed, life=changed))

    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], columns=80) as terminal:
        shown = terminal.read_all()

    assert max(map(len, shown.lines)) <= 80
    assert "CHECKED" not in shown.text
    assert "kv_cache_too_small, maintenance, restart limit" in " ".join(shown.text.split())
    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], columns=60) as terminal:
        shown = terminal.read_all()

    assert max(map(len, shown.lines)) <= 60
    for word in ("kv_cache_too_small,", "maintenance,", "restart", "limit"):
        assert word in shown.text.split()


def test_a_wide_terminal_shows_everything(served) -> None:
    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], columns=200) as terminal:
        shown = terminal.read_all()

    assert "URL" in shown.text
    assert "http://127.0.0.1:8000" in shown.text


def test_a_terminal_without_colour_gets_none(served) -> None:
    environ = {"NO_COLOR": "1"}

    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], 80, environ) as terminal:
        assert "\x1b[3" not in terminal.read_all().raw


def test_one_server_on_a_terminal_wraps_at_its_width(served) -> None:
    command = ["status", "qwen", f"--state.dir={served.state_dir}"]

    with PseudoTerminal(command, columns=60) as terminal:
        shown = terminal.read_all()

    assert max(map(len, shown.lines)) <= 60
    advice = REASON_TEXT[Reason.UNREACHABLE].advice.split()
    assert set(advice) <= set(shown.text.split()), "nothing is cut off"


def test_markup_in_a_name_is_only_text(served) -> None:
    served.show(server("[red]x[/red]", model_name=":smile:[bold]m"))

    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], columns=120) as terminal:
        shown = terminal.read_all()

    assert "[red]x[/red]" in shown.text
    assert ":smile:[bold]m" in shown.text
