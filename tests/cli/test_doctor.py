"""`doctor`: what cannot be seen, why, and what would change that, with or without an agent."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import said
from tests.cli.loads import ago, load, loading_server
from tests.expose.snapshots import (
    HIDDEN,
    MAIN,
    STARTED,
    ad_hoc_server,
    device,
    ended_local_server,
    local_server,
    server,
)
from vllm_agent.cli import doctor, main
from vllm_agent.cli.agent_client import SOCKET_NAME
from vllm_agent.cli.finding import Finding, Level
from vllm_agent.cli.load_findings import LOST_FOR_LOADS, NOT_TOLD_FROM_A_HANG, READ_ENVIRON
from vllm_agent.cli.process_rows import SHOW_ORPHANS
from vllm_agent.lifecycle.server_life import Policy, ServerLife
from vllm_agent.observations import LoadLook, Sight, SightKind
from vllm_agent.snapshot import CollectorSnapshot

NO_FDS, NO_LOG = LOST_FOR_LOADS[SightKind.FDS], LOST_FOR_LOADS[SightKind.LOG]
GPUS = {"collectors": (CollectorSnapshot("gpu", is_up=True),), "gpus": (device(),)}
FDS = Sight(SightKind.FDS, is_visible=False, why_not="it is of another user", fix="run as root")


def test_all_is_well(cli, served) -> None:
    served.show(
        local_server(sights=HIDDEN[:1]),
        discovered=1,
        **GPUS,
    )

    outcome = cli("doctor")

    assert (outcome.code, outcome.err) == (0, "")
    agent, discovery, visible, gpus, conclusion = said(outcome)
    assert agent.startswith("ok agent vllm-agent ")
    assert agent.endswith(f"control socket {served.state_dir}/{SOCKET_NAME}")
    assert discovery == "ok discovery 1 vLLM server(s) found on this host, 1 watched"
    assert visible == "ok visible network"
    assert gpus == "ok gpus driver of NVIDIA 580.95.05 found, 1 device(s)"
    assert conclusion == "everything can be seen"


def test_what_is_hidden_is_told_once_for_all_servers_with_what_would_change_it(cli, served) -> None:
    served.show(
        local_server("a", sights=(FDS, HIDDEN[0])),
        local_server("b", sights=(FDS,)),
        sights=(HIDDEN[1],),
        discovered=2,
        **GPUS,
    )

    outcome = cli("doctor")

    assert outcome.code == 1
    lines = said(outcome)
    place = lines.index(f"problem fds not visible of a, b: it is of another user; {NO_FDS}")
    assert lines[place + 1] == "try: run as root"
    text = f"not visible of this host: its journal may not be read; {NO_LOG}"
    place = lines.index(f"problem log {text}")
    assert lines[place + 1] == "try: usermod -aG systemd-journal x"
    assert lines[-1] == "2 problems"


def test_what_one_server_hides_is_not_called_visible(cli, served) -> None:
    seen = Sight(SightKind.FDS, is_visible=True)
    served.show(local_server("a", sights=(seen,)), local_server("b", sights=(FDS,)), discovered=2)

    assert not [line for line in said(cli("doctor")) if line.startswith("ok visible")]


def test_a_collector_that_does_not_work_is_a_problem(cli, served) -> None:
    blind = CollectorSnapshot("discovery", is_up=False, detail="no PIDs of the host")
    silent = CollectorSnapshot("logs", is_up=False)
    served.show(server(), collectors=(blind, silent))

    outcome = cli("doctor")

    assert outcome.code == 1
    lines = said(outcome)
    assert "problem collector discovery does not work: no PIDs of the host" in lines
    assert "problem collector logs does not work: see the log of the agent" in lines
    assert not [line for line in lines if "discovery.enabled" in line]


def test_what_is_worth_a_note_is_no_failure(cli, served) -> None:
    served.show(server(), ad_hoc_server(), ended_local_server("gone"), is_ready=False)

    outcome = cli("doctor")

    assert outcome.code == 0
    lines = said(outcome)
    assert lines[0].startswith("note agent ")
    assert lines[0].endswith("first look at every server is under way")
    for told, fix in [
        ("servers of this host are not found by themselves", "discovery.enabled: true"),
        ("nobody is paged for llama@8000: no systemd service", "discovery.page: all"),
        ("2 of gone outlived their main process and may hold memory and GPUs", SHOW_ORPHANS),
        ("no driver of NVIDIA or AMD was found on this host", "docker run --gpus all"),
    ]:
        (place,) = [n for n, line in enumerate(lines) if told in line]
        assert lines[place].startswith("note ")
        assert fix in lines[place + 1]
    assert lines[-1] == "5 notes"


def test_a_configured_server_whose_process_was_never_there_is_named(cli, served) -> None:
    waiting = ServerLife.begun(Policy(), None, STARTED)
    absent = {"life": waiting, "sighting": None, "tree": None, "is_discovered": False}
    served.show(local_server("never-started", **absent), **GPUS)

    told = [line for line in said(cli("doctor")) if line.startswith("note match")]

    assert told == ["note match no process of this host ever matched never-started"]


def test_without_an_agent_it_says_how_to_start_one_and_looks_at_what_it_can(
    cli, tmp_path, monkeypatch
) -> None:
    def look(*_: object):
        yield Finding(Level.OK, "kernel", "is new enough")

    monkeypatch.setattr(doctor, "LOCAL_LOOKS", (*doctor.LOCAL_LOOKS, look))

    outcome = cli("doctor")

    assert (outcome.code, outcome.err) == (3, "")
    lines = said(outcome)
    assert lines[0].startswith(f"problem agent no agent is running: nothing answers on {tmp_path}")
    assert "vllm-agent run" in lines[0]
    assert "ok kernel is new enough" in lines


def test_a_problem_of_a_local_look_counts(cli, served, monkeypatch) -> None:
    def look(*_: object):
        yield Finding(Level.PROBLEM, "kernel", "is too old")

    served.show(server(), discovered=0)
    monkeypatch.setattr(doctor, "LOCAL_LOOKS", (look,))

    assert cli("doctor").code == 1


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_configuration_file_is_checked_with_all_its_problems(
    cli, served, tmp_path, monkeypatch, by
) -> None:
    served.show(server(), discovered=0)
    file = tmp_path / "config.yml"
    argv = [f"--config.file={file}"] if by == "flag" else []
    if by == "variable":
        monkeypatch.setenv("VLLM_AGENT_CONFIG_FILE", str(file))

    file.write_text("servers: []\n")
    outcome = cli("doctor", *argv)
    assert outcome.code == 0
    assert f"ok configuration configuration is valid: {file}, no servers" in said(outcome)

    file.write_text("servers:\n  - nme: x\n  - nme: y\n")
    outcome = cli("doctor", *argv)
    assert outcome.code == 1
    problems = [line for line in said(outcome) if line.startswith("problem configuration")]
    assert len(problems) >= 2
    assert f"{file}:2: " in problems[0]


def test_what_shows_a_load_is_told_and_what_cannot_be_told_from_a_hang(cli, served) -> None:
    blind = load(look=LoadLook(process=MAIN, at=ago(0), has_engine=True, cpu_seconds=3.0))
    served.show(loading_server("a"), loading_server("b", blind), local_server("c"), **GPUS)

    outcome = cli("doctor")

    assert outcome.code == 0
    told = [line for line in said(outcome) if " load " in line]
    assert told == [
        "ok load the load of a shows in shards, io, components, log, cpu",
        f"note load the load of b shows in components, cpu: {NOT_TOLD_FROM_A_HANG}",
    ]


@pytest.mark.parametrize(("setting", "is_told"), [("false", True), ("true", False)])
def test_an_environment_that_is_not_read_is_told_with_what_it_hides(
    cli, served, tmp_path, setting, is_told
) -> None:
    served.show(**GPUS)
    file = tmp_path / "config.yml"
    file.write_text(f"discovery: {{read_environ: {setting}}}\n")

    lines = said(cli("doctor", f"--config.file={file}"))

    place = [n for n, line in enumerate(lines) if "read_environ is false" in line]
    assert bool(place) is is_told
    if place:
        assert lines[place[0]].startswith("note load ")
        assert lines[place[0] + 1] == f"try: {READ_ENVIRON}"


def test_json_has_the_findings_and_the_exit_code(cli, served) -> None:
    served.show(local_server(sights=(FDS,)), discovered=1)

    outcome = cli("doctor", "--json")

    assert outcome.code == 1
    view = json.loads(outcome.out)
    assert view["exit_code"] == 1
    assert {
        "level": "problem",
        "about": "fds",
        "text": f"not visible of llama: it is of another user; {NO_FDS}",
        "fix": "run as root",
    } in view["findings"]


def test_json_without_an_agent(cli) -> None:
    outcome = cli("doctor", "--json")

    assert outcome.code == 3
    assert json.loads(outcome.out)["exit_code"] == 3


def test_a_bad_folder_is_a_problem_of_usage(capfd) -> None:
    assert main(["doctor", "--state.dir="]) == 2
    assert capfd.readouterr().err == "--state.dir: must not be empty\n"
