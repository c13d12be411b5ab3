"""`status`: one look at every server or at one, for people, for pipes and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal
from tests.expose.snapshots import (
    CONTAINER,
    HIDDEN,
    ad_hoc_server,
    crashed_server,
    ended_local_server,
    fresh_server,
    life,
    local_server,
    server,
    sighting,
)
from vllm_agent.cli.process_rows import SHOW_ORPHANS
from vllm_agent.cli.server_details import RULE_MEANING
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Instant
from vllm_agent.snapshot import CollectorSnapshot

SUMS = (
    "245 threads, 12.3 GiB resident (shared pages count several times), 311 open files, "
    "2h13m of CPU time"
)


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
        *("REASON", "RESTARTS", "CRASHES", "CHECKED", "PID", "URL"),
        *("STAGE", "DONE", "LEFT"),
        *("MODE", "WANTED", "NEXT"),
    ]
    assert {len(line) for line in lines} == {17}
    crashed, new, running = lines[1:]
    assert running[:3] == ["llama", "running", "3m12s"]
    assert running[3:8] == ["meta-llama/Llama-3.1-8B-Instruct", "0.27.1", "-", "0", "0"]
    assert crashed[5:8] == ["unreachable", "1", "2"]
    assert crashed[9:14] == ["-", "http://gpu7:8000", "-", "-", "-"]
    assert crashed[14:] == ["external", "-", "-"]
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


@pytest.mark.parametrize(
    ("discovered", "found"),
    [(0, "no vLLM server was found on this host"), (None, "'vllm-agent doctor' says why")],
)
def test_no_servers_says_what_to_write(cli, served, discovered, found) -> None:
    served.show(discovered=discovered)

    outcome = cli("status")

    assert (outcome.code, outcome.out) == (0, "")
    assert found in outcome.err
    assert "no server is configured" in outcome.err
    assert "--config.file" in outcome.err


def test_an_agent_that_does_not_see_all_of_the_host_sends_to_the_doctor(cli, served) -> None:
    served.show(server(), sights=HIDDEN)
    assert cli("status").err == (
        "the agent does not see all of this host: 'vllm-agent doctor' says why\n"
    )

    served.show(server(), sights=HIDDEN[:1])
    assert cli("status").err == ""


def test_a_local_server_in_the_table_has_its_pid(cli, served) -> None:
    served.show(local_server(), ended_local_server(), ad_hoc_server(url=""))

    outcome = cli("status")

    assert (outcome.code, outcome.err) == (0, "")
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines()}
    assert rows["llama"][9:11] == ["4021", "http://127.0.0.1:8000"]
    assert rows["qwen"][9:11] == ["-", "http://127.0.0.1:8000"]
    assert rows["llama@8000"][9:11] == ["4021", "-"]


def test_a_local_server_in_full(cli, served) -> None:
    served.show(local_server(sights=HIDDEN))

    lines = cli("status", "llama").out.splitlines()

    start = next(n for n, line in enumerate(lines) if line.startswith("unit"))
    assert [line.split(maxsplit=1)[0] for line in lines[:2]] == ["server", "url"]
    assert lines[0].endswith("llama (monitored, discovered)")
    told = [" ".join(line.split()) for line in lines[start:]]
    assert told[:9] == [
        "unit llama.service",
        "main process PID 4021",
        "components api_server PID 4021",
        "engine_core PID 4050",
        "worker tp0 PID 4100",
        "worker tp1 PID 4101",
        f"processes 5, {SUMS}",
        "not visible log: its journal may not be read",
        "to see it usermod -aG systemd-journal x",
    ]


def test_a_local_server_that_ended_tells_what_is_left_and_how_it_was_judged(cli, served) -> None:
    served.show(ended_local_server())

    out = " ".join(cli("status", "qwen").out.split())

    assert "last ending launch 1 crashed, engine_died, exit code 0, at 2025-06-15" in out
    assert f"judged by rule 4: {RULE_MEANING[4]}" in out
    assert "evidence worker ended with signal 11" in out
    assert "worker tp1 PID 4101, ended" in out
    assert "orphans 2 outlived their main process" in out
    assert SHOW_ORPHANS in out
    assert "main process PID" not in out


def test_every_rule_of_the_judgement_is_told_in_words() -> None:
    assert set(RULE_MEANING) == set(range(1, 8))


def test_a_server_that_nothing_keeps_up_says_that_nobody_is_paged(cli, served) -> None:
    served.show(ad_hoc_server(), local_server())

    out = " ".join(cli("status", "llama@8000").out.split())
    assert "supervised no: no systemd service or container keeps it up" in out
    assert "discovery.page: all" in out
    kept = cli("status", "llama").out
    assert "supervised" not in kept
    assert "discovery.page" not in kept


def test_a_server_in_a_container_names_it(cli, served) -> None:
    served.show(local_server(sighting=sighting(unit=None, container_id=CONTAINER)))

    assert f"container {CONTAINER}" in " ".join(cli("status", "llama").out.split())


@pytest.mark.needs("ps")
def test_the_command_for_orphans_lists_titles_of_vllm_and_not_itself() -> None:
    command = ["VLLM::Worker_TP0", "-c", "input()"]
    with subprocess.Popen(command, executable=sys.executable, stdin=subprocess.PIPE) as worker:
        shown = subprocess.run(
            ["bash", "-c", SHOW_ORPHANS], capture_output=True, text=True, check=True
        ).stdout
        worker.communicate(b"\n")

    assert str(worker.pid) in [line.split()[0] for line in shown.splitlines()]
    assert "grep" not in shown


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
    of_processes = {"supervised", "paged for", "main process", "components", "processes"}
    assert not of_processes & said.keys()


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
        ended_local_server("phi"),
    )

    with PseudoTerminal(["status", f"--state.dir={served.state_dir}"], columns=80) as terminal:
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert "\x1b[" in shown.raw, "a terminal gets colour"
    assert max(map(len, shown.lines)) <= 80
    assert "3 servers, 2 crashed, 1 running" in shown.text
    rows = {line.split()[0]: line for line in shown.lines if line}
    assert "REASON" in rows["SERVER"]
    assert "URL" not in rows["SERVER"]
    assert "sleeping" in rows["llama"]
    assert "unreachable, restart limit" in rows["qwen-2.5-coder"]
    assert "engine_died, 2 orphaned" in rows["phi"]
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
