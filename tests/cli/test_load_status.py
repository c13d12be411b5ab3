"""`status` of a server that loads, or failed to: how far it is, who says so, and why it failed."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tests.cli.conftest import said
from tests.cli.loads import (
    HALF,
    ago,
    downloading,
    late_load,
    load,
    loading_server,
    stalled_server,
)
from tests.cli.pseudo_terminal import PseudoTerminal
from tests.expose.snapshots import crashed_server, ended_local_server, life, server
from vllm_agent.cli.terminal import servers_table
from vllm_agent.expose.json_view import server_view
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Stage

RAW = "\x1b[31m\x1b]0;x\x07\r\n"
"""What a terminal would obey."""


def rows(outcome) -> dict[str, str]:
    """The text of each label; that of lines without one is added to the line above."""
    told: dict[str, str] = {}
    label = ""
    for line in outcome.out.splitlines():
        name, _, text = line.partition("  ")
        label = name or label
        told[label] = " ".join((told.get(label, "") + " " + text).split())
    return told


def on_terminal(served, columns: int, *argv: str) -> PseudoTerminal:
    return PseudoTerminal(["status", *argv, f"--state.dir={served.state_dir}"], columns)


def test_a_pipe_has_columns_whether_anything_loads_or_not(cli, served) -> None:
    served.show(loading_server(), stalled_server("qwen"), server("well"))

    lines = [line.split() for line in cli("status").out.splitlines()]

    assert {len(line) for line in lines} == {17}
    assert {line[0]: line[11:14] for line in lines} == {
        "SERVER": ["STAGE", "DONE", "LEFT"],
        "qwen": ["load_weights", "50%", "stalled"],
        "llama": ["load_weights", "50%", "~1m28s"],
        "well": ["-", "-", "-"],
    }


def test_a_terminal_has_a_bar_while_something_loads(served) -> None:
    served.show(loading_server(), server("well"))

    with on_terminal(served, 80) as terminal:
        shown = terminal.read_all()

    assert max(map(len, shown.lines)) <= 80
    assert "load_weights #####----- 50% ~1m28s" in shown.text
    heading = next(line for line in shown.lines if line.startswith("SERVER"))
    assert heading.split()[:4] == ["SERVER", "STATE", "SINCE", "LOAD"]

    served.show(server("well"))
    with on_terminal(served, 80) as terminal:
        assert "LOAD" not in terminal.read_all().text


@pytest.mark.parametrize(
    ("columns", "has"),
    [
        (200, ["SINCE", "stalled", "#####-----", "~1m28s", "MODEL"]),
        (100, ["SINCE", "stalled", "#####-----", "~1m28s"]),
        (80, ["load_weights 50% stalled", "load_weights 50% ~1m28s"]),
        (60, ["load_weights stalled", "load_weights 50%"]),
        (50, ["load_weights 50% stalled", "load_weights 50% ~1m28s", "unreachable"]),
        (40, ["load_weights stalled", "load_weights 50%", "unreachable"]),
        (30, ["qwen-2.5-coder", "starting"]),
        (20, ["qwen-2.5-", "starting"]),
        (10, ["S"]),
    ],
)
def test_a_narrow_terminal_does_without_what_matters_less(served, columns, has) -> None:
    served.show(loading_server(), stalled_server("qwen-2.5-coder"), crashed_server("crasher"))

    with on_terminal(served, columns) as terminal:
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert max(map(len, shown.lines)) <= columns
    for text in has:
        assert text in shown.text
    if columns >= 60:
        assert "restart limit" in shown.text, "no word of a reason is broken"


@pytest.mark.parametrize("is_loading", [True, False])
def test_at_no_width_is_a_word_broken_and_a_load_is_the_last_to_go(monkeypatch, is_loading) -> None:
    failed = life(Phase.UNREADY, reason=Reason.KV_CACHE_TOO_SMALL, is_sleeping=True)
    first = loading_server() if is_loading else server("llama")
    snapshots = [first, server("qwen-2.5-coder", life=failed)]
    view: Any = {"agent": {"version": "1"}, "servers": [server_view(one) for one in snapshots]}
    for columns in range(12, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        console = Console(width=columns)
        lines = console.render_lines(servers_table(view, ago(0).unix_seconds))
        shown = ["".join(part.text for part in line).rstrip() for line in lines]
        heading, *table = shown[next(n for n, line in enumerate(shown) if line.startswith("S")) :]
        text = "\n".join(table)
        assert max(map(len, shown)) <= columns
        assert "failed" in text or columns < 14
        assert len(table) <= 3, "a reason has two lines at most"
        if "REASON" in heading:
            assert "kv_cache_too_small," in text
        if is_loading:
            assert ("LOAD" in heading) == (columns >= 39)
            assert bool(re.search("load_weights ([#-]+ )?50%", text)) == (columns >= 39)
        assert "REASON" in heading or columns < 43


def test_it_moves_by_itself_while_it_is_watched(served) -> None:
    served.show(loading_server(of=downloading(1, 4)))

    with on_terminal(served, 100, "--watch") as terminal:
        terminal.read_until("download ##-------- 25%")
        served.show(loading_server(of=downloading(3, 4)))
        terminal.read_until("download #######--- 75%")
        served.show(stalled_server(of=downloading(3, 4)))
        terminal.read_until("download #######--- 75% stalled")
        terminal.signal(signal.SIGINT)
        terminal.read_all()

    assert terminal.returncode == 0


def test_a_pipe_that_watches_gets_a_line_per_stage(served, program) -> None:
    served.show(loading_server(of=downloading(1, 4)))
    with program("status", "--watch") as watching:
        first = watching.stdout.readline()
        served.show(loading_server(of=downloading(2, 4)))
        served.show(loading_server())
        second = watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        rest = watching.communicate()[0]

    assert "  llama  starting  download\n" in first
    assert "  llama  starting  load_weights\n" in second
    assert rest == ""


def test_json_is_the_answer_of_the_api(cli, served) -> None:
    snapshot = loading_server()
    served.show(snapshot)

    assert json.loads(cli("status", "llama", "--json").out) == server_view(snapshot)


def test_a_load_in_full(cli, served) -> None:
    served.show(loading_server())

    outcome = cli("status", "llama")

    told = rows(outcome)
    assert told["load"] == "load_weights for 30s, started 1m12s ago, ~1m28s left"
    assert told["weights"] == "##########---------- 50%, shard 5 of 8, 8.0 GiB of 16.0 GiB"
    assert re.fullmatch(r"last [2-9]s ago", told["progress"])
    assert told["stages"] == (
        "init 42s last time 12s load_weights 30s last time 1m20s compile - last time 58s"
    )
    seen = re.sub(r"\d+s ago", "N ago", told["seen by"])
    assert "shards shard 5 of 8 is mapped; progress N ago io 9.0 GiB" in seen
    assert seen.endswith("cpu 41 s of CPU time; not busy yet")
    assert told["not seen by"] == "hf_cache, hub, gpu_memory, compile_cache"
    assert "download" not in told
    lines = said(outcome)
    assert lines.index("load " + told["load"]) < lines.index("model " + told["model"])


@pytest.mark.parametrize(
    ("size_gib", "text"),
    [
        (6.5, "##########---------- 50%, 3.2 GiB of 6.5 GiB as the index in the cache has it"),
        (None, "3.2 GiB"),
    ],
)
def test_a_download_in_full(cli, served, size_gib, text) -> None:
    served.show(loading_server(of=downloading(3.25, size_gib, is_stalled=None)))

    told = rows(cli("status", "llama"))

    assert told["download"] == text
    assert told["load"].startswith("download for 30s")
    assert told["progress"].endswith("nothing that the agent may see shows whether it moves")


def test_a_load_that_stalled_says_since_when_and_what_to_do(cli, served) -> None:
    served.show(stalled_server())

    told = rows(cli("status", "llama"))

    assert told["reason"] == "load_stalled"
    assert "load_weights" in told["advice"]
    assert re.fullmatch(
        r"stalled in load_weights, no progress for 6m0\ds, since [-0-9]+ [:0-9]+", told["progress"]
    )
    assert "left" not in told["load"]


@pytest.mark.parametrize(
    ("is_stalled", "progress"),
    [
        (True, "stalled in load_weights, no progress seen yet"),
        (False, "none seen yet"),
        (None, "none seen yet: nothing that the agent may see shows whether it moves"),
    ],
)
def test_a_load_that_was_not_seen_to_move_yet_says_so(cli, served, is_stalled, progress) -> None:
    served.show(loading_server(of=late_load(is_stalled=is_stalled)))

    assert rows(cli("status", "llama"))["progress"] == progress


def test_what_its_log_says_went_wrong_is_told_while_it_loads(cli, served) -> None:
    look = replace(load().look, trouble=f"hub_timeout{RAW}")
    served.show(loading_server(of=load(look=look)))

    assert rows(cli("status", "llama"))["trouble"].startswith("its log says hub_timeout\ufffd")


def test_a_load_that_is_over_is_told_in_a_line(cli, served) -> None:
    over = load(Stage.NONE, ended=ago(0), weights=replace(HALF, is_complete=True))
    served.show(loading_server(of=over, phase=Phase.READY))

    told = rows(cli("status", "llama"))

    assert told["load"] == "over after 1m12s (init 42s)"
    assert not {"weights", "progress", "stages", "seen by"} & told.keys()


def test_how_far_a_load_got_that_failed(cli, served) -> None:
    over = load(Stage.NONE, ended=ago(0))
    served.show(loading_server(of=over, phase=Phase.CRASHED, reason=Reason.DISK_FULL))

    assert "shard 5 of 8" in rows(cli("status", "llama"))["weights"]


def test_a_crash_tells_who_was_in_the_way_what_to_do_and_where_its_log_is(cli, served) -> None:
    crashed = ended_local_server("my server")
    ending = crashed.life.last_ending
    assert ending is not None
    ending = replace(ending, reason=Reason.PORT_IN_USE, holder=f"PID 812 (nginx{RAW})")
    served.show(
        replace(crashed, life=replace(crashed.life, reason=Reason.PORT_IN_USE, last_ending=ending))
    )

    outcome = cli("status", "my server")

    told = rows(outcome)
    assert told["held by"].startswith("PID 812 (nginx\ufffd[31m")
    assert "\x1b" not in outcome.out
    assert told["its log"] == "vllm-agent history 'my server' --log"
    assert outcome.out.count("\nadvice ") == 1, "advice on the present state is not told twice"


def test_the_advice_on_the_last_crash_is_told_while_it_loads_again(cli, served) -> None:
    crashed = ended_local_server("llama")
    again = loading_server()
    ending = crashed.life.last_ending
    served.show(replace(again, life=replace(again.life, last_ending=ending)))

    told = rows(cli("status", "llama"))

    assert "reason" not in told
    assert told["advice"] == server_view(crashed)["advice"]


def test_one_that_is_watched_by_url_has_no_log_and_no_load(cli, served) -> None:
    served.show(crashed_server("llama"))

    assert not {"its log", "load", "seen by"} & rows(cli("status", "llama")).keys()


@pytest.mark.parametrize("columns", [120, 60, 20])
def test_a_load_in_full_wraps_at_the_width_of_the_terminal(served, columns) -> None:
    served.show(stalled_server(), loading_server("other"))

    with on_terminal(served, columns, "llama") as terminal:
        shown = terminal.read_all()

    assert terminal.returncode == 0
    assert max(map(len, shown.lines)) <= columns


def test_an_agent_of_an_older_version_tells_of_no_load(cli, served, monkeypatch) -> None:
    def older(snapshot):
        view: Any = server_view(snapshot)
        del view["load"]
        for key in ("holder", "advice"):
            del view["last_ending"][key]
        return view

    monkeypatch.setattr("vllm_agent.expose.encoded_views.server_view", older)
    served.show(ended_local_server("llama"))

    assert cli("status").code == cli("status", "llama").code == 0
