"""`history`: what happened, to one server or to all, in the order in which it happened."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.expose.snapshots import server
from vllm_agent.cli import agent_client
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.server_life import Ending, Launch, Transition
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import Instant
from vllm_agent.store import History, LaunchRecord

CRASHED, REFUSED = ServerState.CRASHED, Reason.UNREACHABLE
FACT = "refused for 10 s"


def at(seconds: float) -> Instant:
    """So long after 15:06:40."""
    return Instant(0.0, 1_750_000_000.0 + seconds)


def test_it_is_in_order_of_time_with_reasons_and_endings(cli, served) -> None:
    crash = Ending(1, at(60), CRASHED, Reason.HOST_OOM, 2, ("oom_kill rose",), None, 9)
    served.past = History(
        (
            Transition(at(120), Phase.CRASHED, Phase.READY, None, "", 2),
            Transition(at(60), Phase.READY, Phase.CRASHED, Reason.HOST_OOM, "oom_kill rose", 1),
            Transition(at(0), Phase.UNREADY, Phase.LOST, None, "", 1),
        ),
        (
            LaunchRecord(Launch(2, 1_750_000_090.0, at(120)), None),
            LaunchRecord(Launch(1, None, at(0), has_served=True), crash),
        ),
    )

    outcome = cli("history", "llama")

    assert outcome.code == 0
    assert outcome.out.splitlines() == [
        "2025-06-15 15:06:40  launch 1 seen",
        "2025-06-15 15:06:40  failed (unready -> lost)",
        "2025-06-15 15:07:40  running -> crashed  host_oom  oom_kill rose",
        "2025-06-15 15:07:40  launch 1 ended: crashed, host_oom, signal 9; oom_kill rose",
        f"    advice: {REASON_TEXT[Reason.HOST_OOM].advice}",
        "2025-06-15 15:08:40  launch 2 seen, its process started at 2025-06-15 15:08:10",
        "2025-06-15 15:08:40  crashed -> running",
    ]
    assert cli("history", "llama", "--limit=2").out.splitlines() == outcome.out.splitlines()[-2:]
    assert served.asked_history == [("llama", 50), ("llama", 2)]


def settled_late(*, limit: int) -> History:
    """An end at 15:06:40 that was settled 10 s later; the newest `limit` transitions of it."""
    transitions = (
        Transition(at(10), Phase.LOST, Phase.CRASHED, REFUSED, "", 1),
        Transition(at(0), Phase.READY, Phase.LOST, REFUSED, "", 1),
    )
    ending = Ending(1, at(0), CRASHED, REFUSED, 7, (FACT,))
    return History(transitions[:limit], (LaunchRecord(Launch(1, None, at(-9)), ending),))


def test_an_end_settled_later_comes_after_what_it_was_settled_from(cli, served) -> None:
    served.past = settled_late(limit=2)

    assert cli("history", "llama").out.splitlines() == [
        "2025-06-15 15:06:31  launch 1 seen",
        "2025-06-15 15:06:40  running -> failed  unreachable",
        f"2025-06-15 15:06:40  launch 1 ended: crashed, unreachable; {FACT} (settled 10s later)",
        f"    advice: {REASON_TEXT[REFUSED].advice}",
        "2025-06-15 15:06:50  failed -> crashed  unreachable",
    ]


def test_when_an_end_was_settled_is_told_only_where_it_is_known(cli, served) -> None:
    served.past = settled_late(limit=1)

    assert "settled" not in cli("history", "llama").out


def test_what_happened_at_once_is_told_launch_by_launch(cli, served) -> None:
    ending = Ending(1, at(0), CRASHED, Reason.UNKNOWN, 7)
    served.past = History(
        (
            Transition(at(0), Phase.CRASHED, Phase.READY, None, "", 2),
            Transition(at(0), Phase.LOST, Phase.CRASHED, None, "", None),
            Transition(at(0), Phase.READY, Phase.LOST, None, "", 1),
        ),
        (
            LaunchRecord(Launch(2, None, at(0)), None),
            LaunchRecord(Launch(1, None, at(-9)), ending),
        ),
    )

    lines = cli("history", "llama").out.splitlines()
    assert [line[21:] for line in lines if line.startswith("20")] == [
        "launch 1 seen",
        "running -> failed",
        "failed -> crashed",
        "launch 1 ended: crashed, unknown",
        "launch 2 seen",
        "crashed -> running",
    ]


def failed_launches(*endings: Ending) -> History:
    """Launches that ended one after the other."""
    launches = [
        LaunchRecord(
            Launch(ending.launch_number, None, at(ending.launch_number * 100 - 50)), ending
        )
        for ending in endings
    ]
    return History((), tuple(reversed(launches)))


def failed(number: int, reason: Reason | None = Reason.PORT_IN_USE, **changes: Any) -> Ending:
    """The ending of the launch of that number."""
    return replace(Ending(number, at(number * 100), CRASHED, reason, 2, (), 1), **changes)


LOG = (
    "(EngineCore pid=9) ERROR 06-15 15:08:20 [core.py:1] it failed",
    "Traceback (most recent call last):",
    '  File "/x.py", line 1, in f\x1b[31m\r\n2025-06-15 15:09:00  launch 9 seen',
    "",
)


def test_the_kept_log_is_shown_below_its_ending_when_it_is_asked_for(cli, served) -> None:
    served.past = failed_launches(failed(1, log=LOG, holder="PID 812 (nginx\x1b[0m)"))

    told = cli("history", "llama", "--log").out.splitlines()
    assert told[1] == "2025-06-15 15:08:20  launch 1 ended: crashed, port_in_use, exit code 1"
    assert told[2] == "    held by: PID 812 (nginx\ufffd[0m)"
    assert told[3].startswith("    advice: ")
    assert told[4:] == [
        "    log:",
        "        (EngineCore pid=9) ERROR 06-15 15:08:20 [core.py:1] it failed",
        "        Traceback (most recent call last):",
        '          File "/x.py", line 1, in f\ufffd[31m  2025-06-15 15:09:00  launch 9 seen',
        "",
    ]
    assert cli("history", "llama").out.splitlines() == [
        *told[:4],
        "    log: 4 lines kept, --log shows them",
    ]
    of_all = cli("history", "--log").out.splitlines()
    assert [line for line in of_all if "  llama  " in line][-1].endswith("exit code 1")
    assert set(told[2:]) <= set(of_all)


def test_the_limit_counts_entries_and_not_their_lines(cli, served) -> None:
    served.past = failed_launches(failed(1, log=LOG), failed(2, log=LOG))

    told = cli("history", "llama", "--log", "--limit=1").out.splitlines()

    assert told[0].startswith("2025-06-15 15:10:00  launch 2 ended")
    assert len([line for line in told if line.startswith("20")]) == 1
    assert "        Traceback (most recent call last):" in told


def test_a_crash_loop_is_told_once_what_to_do(cli, served) -> None:
    loop = (failed(number) for number in range(1, 9))
    served.past = failed_launches(failed(0, Reason.DISK_FULL), *loop)

    told = cli("history", "llama").out.splitlines()

    advice = [n for n, line in enumerate(told) if line.startswith("    advice: ")]
    assert len(advice) == 2
    assert "launch 0 ended: crashed, disk_full" in told[advice[0] - 1]
    assert "launch 8 ended: crashed, port_in_use" in told[advice[1] - 1]


@pytest.mark.parametrize("reason", [Reason.PORT_IN_USE, Reason.GPU_MEMORY_TAKEN])
def test_what_to_do_names_who_was_in_the_way_of_any_launch(cli, served, reason) -> None:
    served.past = failed_launches(
        failed(1, reason, holder="python (PID 9287)"), failed(2, reason, holder="nginx (PID 812)")
    )

    told = cli("history", "llama").out.splitlines()

    advice = [line for line in told if line.startswith("    advice: ")]
    assert "held by python (PID 9287): end that" in advice[0]
    assert "held by nginx (PID 812): end that" in advice[1]


def test_a_launch_that_did_not_fail_has_one_line(cli, served) -> None:
    served.past = failed_launches(failed(1, reason=None, state=ServerState.STOPPED, exit_code=0))

    assert cli("history", "llama", "--log").out.splitlines()[1:] == [
        "2025-06-15 15:08:20  launch 1 ended: stopped, exit code 0"
    ]


def test_an_agent_of_an_older_version_tells_less_of_an_ending(cli, served, monkeypatch) -> None:
    ask = agent_client.AgentClient.history

    def older(client, name, limit):
        view = ask(client, name, limit).json
        for launch in view["launches"]:
            for key in ("holder", "advice", "log"):
                launch["ending"].pop(key, None)
        return SimpleNamespace(json=view)

    monkeypatch.setattr(agent_client.AgentClient, "history", older)
    served.past = failed_launches(failed(1, log=LOG))

    assert len(cli("history", "llama", "--log").out.splitlines()) == 2


@pytest.mark.parametrize("phase", [Phase.READY, Phase.ABSENT])
def test_a_note_is_only_its_text(cli, served, phase) -> None:
    note = Transition(at(0), phase, phase, None, "maintenance began")
    served.past = History((note,))

    assert cli("history", "llama").out == "2025-06-15 15:06:40  maintenance began\n"


def test_all_servers_are_merged_by_time(cli, served) -> None:
    served.pasts = {
        "llama": History(
            (
                Transition(at(30), Phase.READY, Phase.UNREADY, Reason.UNHEALTHY, ""),
                Transition(at(10), Phase.UNOBSERVED, Phase.READY, None, ""),
            )
        ),
        "qwen": History((Transition(at(20), Phase.UNOBSERVED, Phase.ABSENT, None, ""),)),
    }

    outcome = cli("history")

    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines == [
        "2025-06-15 15:06:50  llama  unknown -> running",
        "2025-06-15 15:07:00  qwen   unknown -> stopped",
        "2025-06-15 15:07:10  llama  running -> failed  unhealthy",
    ]
    assert cli("history", "--limit=2").out.splitlines() == lines[1:]


def test_all_servers_as_json_are_a_list_of_what_the_api_says(cli, served) -> None:
    def past(*seconds: float) -> History:
        return History(
            tuple(Transition(at(s), Phase.READY, Phase.UNREADY, None, "") for s in seconds),
            tuple(LaunchRecord(Launch(int(s), None, at(s)), None) for s in seconds),
        )

    served.pasts = {"llama": past(50, 40, 30), "qwen": past(45, 20)}

    def kept(limit: int) -> dict[str, tuple[int, list[int]]]:
        view = json.loads(cli("history", "--json", f"--limit={limit}").out)
        assert view.keys() == {"servers"}
        return {
            one["server"]: (len(one["transitions"]), [n["number"] for n in one["launches"]])
            for one in view["servers"]
        }

    assert kept(1000) == {"llama": (3, [50, 40, 30]), "qwen": (2, [45, 20])}
    assert kept(3) == {"llama": (2, [50, 40]), "qwen": (1, [45])}
    assert kept(1) == {"llama": (1, [50]), "qwen": (0, [])}


def test_a_server_that_goes_away_meanwhile_is_left_out(cli, served, monkeypatch) -> None:
    served.past = History((Transition(at(0), Phase.UNOBSERVED, Phase.READY, None, ""),))
    ask = agent_client.AgentClient.history

    def ask_after_a_change(client, name, limit):
        served.show(server("llama"))
        return ask(client, name, limit)

    monkeypatch.setattr(agent_client.AgentClient, "history", ask_after_a_change)

    outcome = cli("history")

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "2025-06-15 15:06:40  llama  unknown -> running\n"


def test_one_server_as_json_is_the_answer_of_the_api(cli, served) -> None:
    outcome = cli("history", "llama", "--json")

    assert json.loads(outcome.out) == {"server": "llama", "transitions": [], "launches": []}
    assert served.asked_history == [("llama", 50)]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("names", "whose"), [(["llama"], "llama"), ([], "any server")])
def test_where_nothing_happened_yet(cli, names, whose) -> None:
    outcome = cli("history", *names)

    assert (outcome.code, outcome.out) == (0, "")
    assert f"nothing is recorded of {whose} yet" in outcome.err
