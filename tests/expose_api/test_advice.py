"""Advice knows the server that it is about, and does not take one launch for another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.expose.snapshots import (
    MAIN,
    MANAGED,
    NOW,
    agent,
    backing_off,
    ended_local_server,
    late_load,
    load,
    loading_life,
    loading_server,
    local_server,
    look,
    managed_server,
    sighting,
)
from vllm_agent.expose.advice import advice_on_ending, advice_on_server
from vllm_agent.expose.json_view import server_view
from vllm_agent.expose.status_page import render
from vllm_agent.lifecycle.management import Management, Trouble
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


def refused(reason: Reason, **asked: Any) -> ServerSnapshot:
    """A managed server that ran before, and of which a new start came to nothing."""
    before = backing_off().life
    management = Management(attempts=2, gone_since=NOW, **asked)
    life = replace(before, phase=Phase.REFUSED, reason=reason, management=management)
    return managed_server(life=life, tree=None)


def test_a_refused_start_is_about_the_model_that_was_to_be_served() -> None:
    new = refused(Reason.MODEL_NOT_FOUND, model="org/new", model_before="org/my old")

    assert "huggingface.co/org/new exists" in advised(new)
    assert advised(new).endswith("set-model llama 'org/my old'' brings back the model before.")
    again = refused(Reason.MODEL_NOT_FOUND)
    assert "huggingface.co/meta-llama/Llama-3.1-8B-Instruct exists" in advised(again)
    assert "set-model" not in advised(again)
    folder = refused(Reason.MODEL_NOT_FOUND, model="/models/new")
    assert advised(folder).startswith("/models/new is not there, holds no model, or managed.user ")


def test_a_refused_start_is_about_the_port_of_the_url() -> None:
    taken = replace(refused(Reason.PORT_IN_USE), sighting=None)

    assert "holds port 8000 with" in advised(taken)
    assert "8123" in advised(replace(taken, url="http://127.0.0.1:8123"))
    general = REASON_TEXT[Reason.PORT_IN_USE].advice
    assert advised(replace(taken, url="unix:///run/vllm.sock")) == general
    assert advised(replace(taken, url="whatever")) == general


def test_a_refused_start_is_not_advised_with_the_end_before_it() -> None:
    shown = refused(Reason.GPU_MEMORY_TAKEN)
    ending = shown.life.last_ending
    assert ending is not None
    held = replace(ending, reason=Reason.GPU_MEMORY_TAKEN, holder="long gone (PID 7)")

    shown = replace(shown, life=replace(shown.life, last_ending=held))
    assert "long gone" not in advised(shown)
    backing = replace(shown, life=replace(shown.life, phase=Phase.BACKOFF))
    assert "long gone" in advised(backing), "here that end is what is told of"
    given = replace(backing.life, phase=Phase.GAVE_UP, reason=Reason.PORT_IN_USE)
    assert "long gone" not in advised(replace(backing, life=given))


def test_a_refused_start_names_who_holds_what_it_needs() -> None:
    taken = Trouble(Reason.GPU_MEMORY_TAKEN, "3 GiB are free", holder="python3 (PID 7)")
    shown = refused(Reason.GPU_MEMORY_TAKEN, trouble=taken)

    assert advised(shown).startswith("GPU memory is held by python3 (PID 7): end that, or lower ")
    general = REASON_TEXT[Reason.HOST_OOM].advice
    assert advised(replace(shown, life=replace(shown.life, reason=Reason.HOST_OOM))) == general
    blocked = replace(taken, reason=Reason.PORT_IN_USE)
    port = refused(Reason.PORT_IN_USE, trouble=blocked)
    assert advised(port).startswith("Port 8000 is held by python3 (PID 7): end that, or write ")


def test_credentials_of_an_object_store_are_not_advised_with() -> None:
    stored = "s3://key:secret@bucket/llama"
    shown = refused(Reason.MODEL_NOT_FOUND, model=stored, model_before=stored)

    assert advised(shown) == REASON_TEXT[Reason.MODEL_NOT_FOUND].advice


@pytest.mark.parametrize(
    ("phase", "is_dry_run", "is_left_down"),
    [
        (Phase.GAVE_UP, False, True),
        (Phase.BACKOFF, True, True),
        (Phase.REFUSED, True, True),
        (Phase.BACKOFF, False, False),
        (Phase.REFUSED, False, False),
        (Phase.UNREADY, True, False),
    ],
)
def test_what_the_agent_leaves_down_is_told_with_the_command(
    phase, is_dry_run, is_left_down
) -> None:
    shown = refused(Reason.SPAWN_FAILED)
    policy = replace(MANAGED, is_dry_run=is_dry_run)
    shown = replace(shown, policy=policy, life=replace(shown.life, phase=phase))

    assert ("vllm-agent start llama'" in advised(shown)) == is_left_down


def test_what_an_old_end_came_to_says_nothing_of_what_is_asked_now() -> None:
    shown = refused(Reason.SPAWN_FAILED, model_before="org/old")
    ending = shown.life.last_ending
    assert ending is not None

    text = str(advice_on_ending(shown, replace(ending, reason=Reason.GPU_OOM)))

    assert text.startswith("Lower managed.gpu_memory_utilization")
    assert "set-model" not in text


def test_a_server_that_is_only_watched_is_never_said_to_be_startable() -> None:
    shown = ended(Reason.GPU_MEMORY_TAKEN, HUB, holder="python3 (PID 7)")

    assert "managed." not in advised(shown)
    assert "vllm-agent start" not in advised(shown)
