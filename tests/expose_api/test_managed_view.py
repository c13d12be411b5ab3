"""A managed server on API and page: what is asked of it, what follows, and where evidence is."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.expose.snapshots import (
    MANAGED,
    NOW,
    STARTED,
    agent,
    backing_off,
    given_up,
    local_server,
    managed_life,
    managed_server,
    server,
)
from tests.expose_api.test_status_page import Page, why
from vllm_agent.expose.history_view import history_view
from vllm_agent.expose.json_view import server_view
from vllm_agent.expose.managed_view import PHASE_WORDS, ManagedView, managed_view
from vllm_agent.expose.status_page import render
from vllm_agent.lifecycle.management import Management, Stop, StopOutcome
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import Phase
from vllm_agent.observations import Instant
from vllm_agent.store import History, LaunchRecord

BUNDLE = "/var/lib/x/evidence/llama-1.json"
DRY = replace(MANAGED, is_dry_run=True)


def view_of(shown) -> ManagedView:
    view = managed_view(shown)
    assert view is not None
    return view


def asked_of(phase: Phase = Phase.READY, **asked):
    return managed_server(life=managed_life(phase, Management(**asked)))


@pytest.mark.parametrize("make", [server, local_server])
def test_a_server_that_is_only_watched_has_no_such_view(make) -> None:
    assert server_view(make())["managed"] is None


def test_a_server_that_runs() -> None:
    assert server_view(managed_server())["managed"] == {
        "goal": "up",
        "phase": "ready",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "model_before": None,
        "next_restart_timestamp_seconds": None,
        "attempts": 1,
        "last_stop": None,
        "is_dry_run": False,
    }


def test_the_model_that_an_operator_chose_comes_before_the_configured_one() -> None:
    view = view_of(asked_of(model="org/new", model_before="org/old"))

    assert (view["model"], view["model_before"]) == ("org/new", "org/old")


def test_credentials_of_an_object_store_are_not_told() -> None:
    shown = asked_of(model="s3://key:secret@bucket/new", model_before="s3://secret@bucket/a@b")

    view = view_of(shown)

    assert (view["model"], view["model_before"]) == ("s3://bucket/new", "s3://bucket/a@b")
    assert "secret" not in render(agent(shown), NOW)
    assert "s3://bucket/new" in why(shown)


def test_a_stop_tells_how_it_ended() -> None:
    stopped = asked_of(Phase.ABSENT, is_goal_up=False, last_stop=StopOutcome(3, 4.25, True))  # noqa: FBT003 - as in a page

    view = view_of(stopped)

    assert view["goal"] == "down"
    assert view["last_stop"] == {"launch": 3, "seconds": 4.25, "is_forced": True}
    text = why(stopped)
    assert "it stays down until an operator starts it" in text
    assert "its last stop took 4 s, with SIGKILL" in text
    graceful = asked_of(Phase.ABSENT, last_stop=StopOutcome(3, 4.25, False))  # noqa: FBT003 - as in a page
    assert why(graceful) == "its last stop took 4 s"
    assert why(asked_of(last_stop=StopOutcome(3, 4.25, False))) == ""  # noqa: FBT003 - as in a page


def test_the_next_restart_is_told_with_its_time() -> None:
    shown = backing_off()

    assert view_of(shown)["next_restart_timestamp_seconds"] == 1_750_000_102
    assert "the agent starts it again in 1 second" in why(shown)
    late = Instant(1_103.0, 1_750_000_103.0)
    assert "the agent starts it again now" in Page(render(agent(shown), late)).text


def test_a_restart_that_is_not_planned() -> None:
    dry = backing_off(policy=DRY)

    assert view_of(dry)["is_dry_run"] is True
    assert view_of(dry)["next_restart_timestamp_seconds"] is None
    assert "the agent does not start it again for now" in why(dry)
    assert "restart.dry_run: restarts are only told of" in why(dry)


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.KILLING, Phase.GAVE_UP])
def test_the_page_says_what_the_agent_is_about(phase) -> None:
    assert PHASE_WORDS[phase] in why(asked_of(phase))


def test_a_stop_under_way_says_since_when() -> None:
    stop = Stop(STARTED, STARTED)

    assert why(asked_of(Phase.TERMINATING, stop=stop)) == "the agent sent SIGTERM 1 minute ago"


def test_a_new_model_is_told_until_it_has_served() -> None:
    told = why(asked_of(Phase.PREPARING, model="org/new", model_before="org/old"))

    assert told.endswith("model org/new is to take the place of org/old")


def test_only_managed_servers_have_such_lines() -> None:
    watched = replace(backing_off().life, management=None)

    assert "the agent starts it" not in why(local_server(life=watched))


def test_evidence_is_on_api_and_page_and_in_the_history() -> None:
    shown = backing_off()
    launch, ending = shown.life.launch, shown.life.last_ending
    assert launch is not None
    assert ending is not None

    last = server_view(shown)["last_ending"]

    assert last is not None
    assert last["bundle"] == BUNDLE
    assert f"evidence of its last end: {BUNDLE}" in why(shown)
    past = History(launches=(LaunchRecord(launch, ending),))
    (told,) = history_view(shown, past, with_logs=False)["launches"]
    assert told["ending"] is not None
    assert told["ending"]["bundle"] == BUNDLE
    none = replace(shown, life=replace(shown.life, last_ending=replace(ending, bundle="")))
    last = server_view(none)["last_ending"]
    assert last is not None
    assert last["bundle"] is None
    assert "evidence" not in why(none)


async def test_every_change_of_what_is_asked_has_a_tag_of_its_own(reader, fake) -> None:
    shown = backing_off()
    life, asked = shown.life, shown.life.management
    assert asked is not None
    assert life.last_ending is not None
    changed = (
        shown,
        replace(shown, life=replace(life, management=replace(asked, is_goal_up=False))),
        replace(shown, life=replace(life, management=replace(asked, model="org/new"))),
        replace(shown, life=replace(life, management=replace(asked, model_before="org/old"))),
        replace(shown, life=replace(life, management=replace(asked, gone_since=NOW))),
        replace(shown, life=replace(life, management=replace(asked, attempts=2))),
        replace(
            shown,
            life=replace(
                life,
                management=replace(asked, last_stop=StopOutcome(1, 2.0, is_forced=False)),
            ),
        ),
        replace(shown, life=replace(life, last_ending=replace(life.last_ending, bundle=""))),
        replace(shown, life=replace(life, phase=Phase.REFUSED)),
        replace(shown, policy=DRY),
    )
    of_one, of_all = set(), set()
    for one in changed:
        fake.show(one)
        of_one.add((await reader.get("/api/v1/servers/llama")).headers["ETag"])
        of_all.add((await reader.get("/api/v1/servers")).headers["ETag"])

    assert (len(of_one), len(of_all)) == (len(changed), len(changed))


def test_a_server_that_was_given_up_says_how_it_begins_again() -> None:
    text = why(given_up())

    assert "vllm-agent start llama" in text
    assert "the agent starts it no more until an operator does" in text
    assert server_view(given_up())["reason"] == Reason.AIRGAPPED


def test_every_phase_of_managed_mode_alone_has_words() -> None:
    states = {Phase.PREPARING, Phase.TERMINATING, Phase.KILLING}
    assert PHASE_WORDS.keys() == states | {Phase.BACKOFF, Phase.REFUSED, Phase.GAVE_UP}
    assert not any(re.search("[.!]$", words) for words in PHASE_WORDS.values())
