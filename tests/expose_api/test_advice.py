"""Advice knows the server that it is about, and does not take one launch for another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.expose.snapshots import (
    MAIN,
    NOW,
    agent,
    ended_local_server,
    late_load,
    load,
    loading_life,
    loading_server,
    local_server,
    look,
    sighting,
)
from vllm_agent.expose.advice import advice_on_ending, advice_on_server
from vllm_agent.expose.json_view import server_view
from vllm_agent.expose.status_page import render
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.server_life import Ending, Launch, Policy
from vllm_agent.lifecycle.states import Phase, ServerState
from vllm_agent.observations import Stage, VllmCommand

if TYPE_CHECKING:
    from vllm_agent.snapshot import ServerSnapshot


def ended(reason: Reason, command: VllmCommand, **changes: Any) -> ServerSnapshot:
    """A local server whose second launch crashed for that reason."""
    ending = Ending(2, NOW, ServerState.CRASHED, reason, 2, **changes)
    crashed = ended_local_server("llama", sighting=sighting(command=command))
    launch = Launch(2, None, NOW, process=MAIN)
    return replace(
        crashed,
        life=replace(crashed.life, reason=reason, last_ending=ending, launch=launch),
    )


def advised(shown: ServerSnapshot) -> str:
    reason = shown.life.reason
    assert reason is not None
    return advice_on_server(shown, reason)


HUB = VllmCommand(model="org/name", port=8123)


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/name", "https://huggingface.co/org/name exists"),
        ("gpt2", "https://huggingface.co/gpt2 exists"),
        ("org/name:Q4_K_M", "https://huggingface.co/org/name exists"),
        ("/models/llama", "/models/llama is not there"),
        ("./llama", "./llama is not there"),
        ("~/llama", "~/llama is not there"),
        ("a/b/c", "a/b/c is not there"),
        ("-x/name", "-x/name is not there"),
        ("org/na me\n", "org/na me? is not there"),
        ("s3://key:secret@bucket/llama", REASON_TEXT[Reason.MODEL_NOT_FOUND].advice),
        (None, REASON_TEXT[Reason.MODEL_NOT_FOUND].advice),
    ],
)
def test_a_model_is_a_page_of_the_hub_or_a_folder(model, shown) -> None:
    text = advised(ended(Reason.MODEL_NOT_FOUND, VllmCommand(model=model)))

    assert shown in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("revision", "shown"), [("refs/pr/1", "/org/name/tree/refs/pr/1 "), ("x; rm -r", "/org/name ")]
)
def test_a_revision_is_named_where_it_is_one(revision, shown) -> None:
    command = VllmCommand(model="org/name", revision=revision)

    assert shown in advised(ended(Reason.MODEL_NOT_FOUND, command))


def test_the_port_and_who_holds_it() -> None:
    assert "port 8123 with" in advised(ended(Reason.PORT_IN_USE, HUB))
    held = ended(Reason.PORT_IN_USE, HUB, holder="nginx (PID 9)")
    assert "Port 8123 is held by nginx (PID 9)" in advised(held)
    gone = replace(held, sighting=None)
    assert advised(gone).startswith("Its port is held by nginx (PID 9): ")
    on_socket = ended(Reason.PORT_IN_USE, VllmCommand(uds="/run/vllm.sock"))
    assert advised(on_socket) == REASON_TEXT[Reason.PORT_IN_USE].advice


def test_lines_of_a_log_are_pointed_to_where_they_are_kept() -> None:
    kept = ended(Reason.EXIT_NONZERO, HUB, log=("the secret prompt",))
    assert "'vllm-agent history --log llama'" in advised(kept)
    assert "prompt" not in advised(kept)
    assert advised(ended(Reason.EXIT_NONZERO, HUB)) == REASON_TEXT[Reason.EXIT_NONZERO].advice


@pytest.mark.parametrize(
    ("stage", "has_engine", "start_seconds", "limit"),
    [
        (Stage.INIT, False, 120.0, "servers[].start.start_timeout, which is 120 s"),
        (Stage.INIT, False, 400.0, "servers[].start.load_timeout, which is 300 s"),
        (Stage.INIT, True, 120.0, "servers[].start.load_timeout, which is 300 s"),
        (Stage.DOWNLOAD, False, 120.0, "servers[].start.load_timeout, which is 300 s"),
    ],
)
def test_a_stalled_load_names_the_limit_that_it_hit(
    stage, has_engine, start_seconds, limit
) -> None:
    stalled = load(stage=stage, look=look(has_engine=has_engine), is_stalled=True)
    shown = loading_server(
        policy=Policy(is_local=True, start_timeout_seconds=start_seconds),
        life=loading_life(Phase.STALLED, load=stalled, reason=Reason.LOAD_STALLED),
    )

    assert f"No progress in stage {stage} for 1 s: " in advised(shown)
    assert limit in advised(shown)


def test_a_load_that_was_not_seen_to_move_is_not_told_for_how_long() -> None:
    late = late_load(is_stalled=True)
    shown = loading_server(life=loading_life(Phase.STALLED, load=late, reason=Reason.LOAD_STALLED))

    assert advised(shown).startswith("No progress in stage load_weights: look at the disk")


@pytest.mark.parametrize(
    ("evidence", "shown"),
    [
        (("XID 79 on GPU 0 (GPU-1)", "worker: exited with 1"), "Look up XID 79 in NVIDIA's"),
        (("GPU 0 (GPU-1) was lost",), "If 'vllm-agent history' names an XID, "),
        (("its log says: XID 79 on fire",), "If 'vllm-agent history' names an XID, "),
    ],
)
def test_an_xid_is_named_where_one_was_told(evidence, shown) -> None:
    fault = ended(Reason.GPU_FAULT, HUB, evidence=evidence)

    assert advised(fault).startswith(shown)


def test_a_launch_is_not_advised_with_the_facts_of_another() -> None:
    shown = ended(Reason.MODEL_NOT_FOUND, HUB)
    older = Ending(1, NOW, ServerState.CRASHED, Reason.MODEL_NOT_FOUND, 2)
    general = REASON_TEXT[Reason.MODEL_NOT_FOUND].advice

    assert advice_on_ending(shown, older) == general
    assert shown.life.last_ending is not None
    assert "org/name" in str(advice_on_ending(shown, shown.life.last_ending))
    held = replace(older, reason=Reason.GPU_MEMORY_TAKEN, holder="python3 (PID 7)")
    assert "python3 (PID 7)" in str(advice_on_ending(shown, held)), "a fact of the ending itself"
    blocked = replace(held, reason=Reason.PORT_IN_USE)
    assert "held by python3 (PID 7)" in str(advice_on_ending(shown, blocked))
    assert "8123" not in str(advice_on_ending(shown, blocked)), "the port is the newest launch's"

    still = replace(
        shown.life, reason=Reason.PORT_IN_USE, last_ending=replace(held, launch_number=1)
    )
    assert "is held" not in advised(replace(shown, life=still))

    other = sighting(process=replace(MAIN, pid=9), command=HUB)
    assert advised(replace(shown, sighting=other)) == general
    assert advised(replace(shown, sighting=None)) == general


def test_what_was_asked_for_needs_no_advice() -> None:
    stopped = Ending(2, NOW, ServerState.STOPPED, None, 3)

    assert advice_on_ending(local_server(), stopped) is None


def test_api_and_page_say_the_same() -> None:
    shown = ended(Reason.HF_AUTH, HUB)

    assert server_view(shown)["advice"] == advised(shown)
    last = server_view(shown)["last_ending"]
    assert last is not None
    assert last["advice"] == advised(shown)
    assert advised(shown) in render(agent(shown), NOW)
