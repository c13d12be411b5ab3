"""What systemd says of a unit, from recordings of a real one and from programs that misbehave."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.host import systemd
from vllm_agent.host.short_command import NoAnswerError
from vllm_agent.host.systemd import UnitView, ask_unit, parse_job, parse_properties, systemd_sight
from vllm_agent.observations import SightKind

RECORDING = Path(__file__).parents[1] / "testdata" / "systemd" / "service-states.txt"

# Whether each recorded step is one of a stop that somebody asked for.
IS_STOP = {
    "stop": [True, True],
    "restart": [True, True],
    "stop-with-execstop": [True, True, True],
    "stop-job-waits": [True],
    # Without its job, the end of a stop that took too long looks like any other.
    "stop-timeout": [True, False],
    "quick stop-asked-late": [False],  # systemd has unloaded it
    "main-killed": [False, False, False],
    "main-killed-no-restart": [False, False],
    "main-killed-stop-post": [False, False, False],
    "main-killed-with-execstop": [False, False, False],
    "killed-asked-late": [False],
    "told-by-kill-asked-late": [False],
    "kill-command": [False, False],
    "stop-after-main-killed": [False, False, False],
    "stop-in-auto-restart": [False],
    "restart-in-auto-restart": [False],
    "runtime-max": [False, False, False],
    "start-timeout": [False, False, False],
}


def recorded() -> list[tuple[str, int, str, str | None]]:
    """(what had been done, step, output of show, output of list-jobs)."""
    steps: list[tuple[str, int, str, str | None]] = []
    for block in RECORDING.read_text(encoding="utf-8").split("\n## ")[1:]:
        name, _, text = block.partition("\n")
        shown, _, jobs = text.partition("jobs: ")
        number = sum(step[0] == name for step in steps)
        steps.append((name, number, shown, jobs.replace(";", "\n") or None))
    return steps


def unit_of(jobs: str | None) -> str:
    """The unit that a recorded step is about: the recording has one job of it at most."""
    found = re.findall(r"\S+\.service", jobs or "")
    return found[0] if found else "vllm.service"


@pytest.mark.parametrize(
    ("name", "step", "shown", "jobs"), recorded(), ids=[f"{s[0]}-{s[1]}" for s in recorded()]
)
def test_each_recorded_state_is_read_rightly(name, step, shown, jobs):
    job = parse_job((jobs or "").encode(), unit_of(jobs))
    assert systemd.view(parse_properties(shown.encode()), job).says_stop is IS_STOP[name][step]


def test_every_recorded_step_has_an_expectation():
    assert {(name, step) for name, step, _, _ in recorded()} == {
        (name, step) for name, steps in IS_STOP.items() for step in range(len(steps))
    }


def view_of(name: str, step: int, job: str | None = None) -> UnitView:
    shown = next(s[2] for s in recorded() if s[:2] == (name, step))
    return systemd.view(parse_properties(shown.encode()), job)


def test_the_moment_of_a_stop_is_when_the_unit_was_no_longer_active():
    stopping = view_of("stop", 0, "stop")
    assert stopping.main_start_seconds is not None
    assert stopping.stop_seconds is not None
    assert 0.3 < stopping.stop_seconds - stopping.main_start_seconds < 2.0
    assert view_of("stop", 1, "stop").stop_seconds == stopping.stop_seconds


def test_a_job_that_waits_has_no_moment_yet():
    waiting = view_of("stop-job-waits", 0, "stop")
    assert waiting.says_stop
    assert waiting.stop_seconds is None


def test_the_moment_of_an_earlier_life_is_not_that_of_a_stop():
    again = view_of("restart-in-auto-restart", 0, "stop")
    assert again.left_active_seconds is not None
    assert again.says_stop
    assert again.stop_seconds is None


def test_a_death_has_no_moment_of_a_stop():
    assert view_of("main-killed", 0).stop_seconds is None


def test_a_stop_is_told_even_after_the_main_process_has_gone_and_its_job_is_done():
    gone = view_of("stop", 1, None)
    assert gone.main_pid is None
    assert gone.says_stop


def test_systemd_that_gives_a_unit_up_was_not_asked_to():
    for name in ("runtime-max", "start-timeout"):
        given_up = view_of(name, 1)
        assert given_up.main_pid is not None
        assert given_up.active_state == "deactivating"
        assert not given_up.says_stop


def test_unknown_is_none():
    bare = systemd.view({"ActiveState": "active", "MainPID": "0", "NRestarts": "x"}, None)
    assert bare == UnitView(active_state="active", sub_state="", result="")


def test_something_that_is_no_unit_is_no_view():
    with pytest.raises(NoAnswerError):
        systemd.view({}, None)


@given(st.binary(max_size=400))
def test_any_output_is_read_without_an_error(output):
    properties = parse_properties(output)
    parse_job(output, "vllm.service")
    systemd.view({"ActiveState": "active"} | properties | {"SubState": ""}, None)


def program(folder: Path, script: str) -> tuple[str, ...]:
    """A systemctl that does what `script` says, and notes how it was called."""
    path = folder / "systemctl"
    path.write_text(f'#!/bin/sh\necho "$*" >>{shlex.quote(str(folder))}/calls\n{script}\n')
    path.chmod(0o755)
    return (str(path),)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


async def test_a_unit_is_asked_for_with_one_command_where_it_has_no_job(tmp_path):
    answer = (
        "ActiveState=active\\nSubState=running\\nJob=\\nResult=success\\nMainPID=7\\nNRestarts=2\\n"
    )
    view = await ask_unit("vllm.service", systemctl=program(tmp_path, f"printf '{answer}'"))
    assert view is not None
    assert (view.main_pid, view.restarts, view.says_stop) == (7, 2, False)
    [call] = calls(tmp_path)
    assert call.startswith("show --property=")
    assert call.endswith(" -- vllm.service")


async def test_the_type_of_a_job_is_asked_for(tmp_path):
    script = """
    case $1 in
    show) printf 'ActiveState=deactivating\\nResult=timeout\\nMainPID=7\\nJob=8\\n' ;;
    list-jobs) printf '7 other.service start waiting\\n8 vllm.service restart running\\n' ;;
    esac"""
    view = await ask_unit("vllm.service", systemctl=program(tmp_path, script))
    assert view is not None
    assert view.job == "restart"
    assert view.says_stop
    assert len(calls(tmp_path)) == 2


async def test_a_unit_that_systemd_does_not_know_is_none(tmp_path):
    script = "printf 'LoadState=not-found\\nActiveState=inactive\\n'"
    assert await ask_unit("vllm.service", systemctl=program(tmp_path, script)) is None


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", ":"])
async def test_a_program_that_tells_nothing_is_none(tmp_path, script):
    assert await ask_unit("vllm.service", systemctl=program(tmp_path, script)) is None


async def test_a_missing_program_is_none(tmp_path):
    missing = (str(tmp_path / "systemctl"),)
    assert await ask_unit("vllm.service", systemctl=missing) is None
    sight = await systemd_sight("vllm.service", systemctl=missing)
    assert not sight.is_visible
    assert "No such file or directory" in sight.why_not


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_program_that_hangs_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(systemd, "DEADLINE_SECONDS", 0.3)
    script = f"echo $$ >{shlex.quote(str(tmp_path))}/pid; exec sleep 60"
    assert await ask_unit("vllm.service", systemctl=program(tmp_path, script)) is None
    assert is_gone(int((tmp_path / "pid").read_text()))


async def test_one_that_is_cancelled_is_killed(tmp_path):
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    script = f"echo $$ >{shlex.quote(str(fifo))}; exec sleep 60"
    asking = asyncio.create_task(ask_unit("vllm.service", systemctl=program(tmp_path, script)))
    pid = int(await asyncio.to_thread(fifo.read_text))
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert is_gone(pid)


async def test_endless_output_is_cut(tmp_path):
    assert await ask_unit("vllm.service", systemctl=program(tmp_path, "exec yes")) is None


async def test_the_systemd_of_a_user_is_asked_as_that_user(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "stat", lambda _: os.stat_result((0o700, 1, 1, 1, 1000, 100, *[0] * 4)))
    command, environment = systemd._as_user(("systemctl",), 1000)
    assert command[0] == "setpriv"
    assert {"--reuid=1000", "--regid=100", "--clear-groups"} <= set(command)
    assert command[-2:] == ("systemctl", "--user")
    assert environment == {"XDG_RUNTIME_DIR": "/run/user/1000"}


async def test_the_systemd_of_the_agents_own_user_is_asked_directly():
    command, environment = systemd._as_user(("systemctl",), os.geteuid())
    assert command == ("systemctl", "--user")
    assert environment == {"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"}


async def test_another_users_systemd_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    sight = await systemd_sight("vllm.service", is_user_unit=True, uid=1001)
    assert not sight.is_visible
    assert sight.kind is SightKind.SYSTEMD
    assert "uid 1001" in sight.fix


async def test_a_user_without_a_systemd_is_told(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    sight = await systemd_sight("vllm.service", is_user_unit=True, uid=2**31 - 7)
    assert "no systemd of its own" in sight.why_not


@pytest.mark.needs("systemctl")
async def test_the_real_program_knows_the_questions():
    # Without systemd it fails to connect; it must not fail to understand.
    sight = await systemd_sight("no-such-unit-of-vllm-agent.service")
    assert not sight.is_visible
    assert "nknown" not in sight.why_not
    assert await ask_unit("no-such-unit-of-vllm-agent.service") is None
