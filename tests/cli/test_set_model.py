"""`set-model`: until the model is served, or with the way back; and what is no model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.cli.managed_servers import alive, given_up
from tests.expose.snapshots import MANAGED, managed_server
from vllm_agent.cli import follow, main
from vllm_agent.expose.operations import NotManagedError
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import Answer, Outcome
from vllm_agent.lifecycle.reasons import Reason

OLD = MANAGED.model
SET = ("set-model", "llama", "org/new")
BACK = f"vllm-agent: to serve the model before again: vllm-agent set-model llama {OLD}"


@pytest.fixture
def runs(served, monkeypatch):
    """The agent, whose server runs with `OLD`, and is `then` after the next poll."""
    served.show(managed_server())
    served.became = (alive(model="org/new", model_before=OLD),)
    served.then = managed_server()
    clock = SimpleNamespace(
        monotonic=lambda: 0.0, time=lambda: 0.0, sleep=lambda _: served.show(served.then)
    )
    monkeypatch.setattr(follow, "time", clock)
    return served


def test_it_waits_until_the_model_is_served(cli, runs) -> None:
    outcome = cli(*SET)

    assert (outcome.code, outcome.out) == (0, "llama is running and serves org/new\n")
    assert outcome.err.startswith("llama: starting, ")
    assert runs.asked == [("llama", Wish.RESTART, "org/new")]


def test_a_start_that_failed_offers_the_model_before(cli, runs) -> None:
    runs.came = Answer(Outcome.FAILED, "it is gated", Reason.HF_AUTH)

    outcome = cli(*SET)

    assert (outcome.code, outcome.out) == (1, "")
    why, advice, *then = outcome.err.splitlines()
    assert "hf_auth" in why
    assert "it is gated" in why
    assert advice.startswith("vllm-agent: advice: ")
    assert "vllm-agent: when that is mended: vllm-agent set-model llama org/new" in then
    assert outcome.err.count(f"vllm-agent set-model llama {OLD}") == 1


def test_a_model_whose_name_begins_like_the_new_one_is_offered(cli, runs) -> None:
    runs.became = ()
    runs.show(alive(model="org/n"))
    runs.came = Answer(Outcome.FAILED, "it is gated", Reason.HF_AUTH)

    assert cli(*SET).err.endswith("again: vllm-agent set-model llama org/n\n")


def test_a_model_that_does_not_come_up_offers_the_one_before(cli, runs) -> None:
    runs.then = given_up(model="org/new", model_before=OLD)

    outcome = cli(*SET)

    assert (outcome.code, outcome.out) == (1, "")
    assert "vllm-agent: llama is failed: model_not_found: 2 times in a row" in outcome.err
    assert outcome.err.count(f"vllm-agent set-model llama {OLD}") == 1


def test_a_model_that_takes_too_long_offers_the_one_before(cli, runs, monkeypatch) -> None:
    monkeypatch.setattr("vllm_agent.cli.patience.DEFAULT_SECONDS", 0.0)

    outcome = cli(*SET)

    assert outcome.code == 4
    assert "llama is still starting" in outcome.err
    assert outcome.err.splitlines()[-1] == BACK
    assert runs.asked == [("llama", Wish.RESTART, "org/new")]


def test_the_model_offered_is_the_one_that_was_served(cli, runs) -> None:
    runs.show(given_up(model="org/bad", model_before=OLD))
    runs.came = Answer(Outcome.FAILED, "it is gated", Reason.HF_AUTH)

    err = cli(*SET).err

    assert f"vllm-agent set-model llama {OLD}" in err
    assert "org/bad" not in err


def test_the_model_that_fails_is_not_offered(cli, runs) -> None:
    runs.then = given_up(model="org/new")

    assert "to serve the model before" in cli(*SET).err
    runs.show(given_up(model="org/new"))
    runs.became = (given_up(model="org/new"),)
    assert "to serve the model before" not in cli(*SET).err


def test_nothing_is_offered_where_nothing_was_done(cli, runs) -> None:
    runs.became, runs.came = (), NotManagedError("llama is started by llama.service")
    assert "the model before" not in cli(*SET).err


@pytest.mark.parametrize(
    "words",
    [
        ["set-model", "llama", "-x"],
        ["set-model", "llama", "--x=y"],
        ["set-model", "llama", "--", "-x"],
        ["set-model", "-x"],
        ["start", "llama", "--model", "-x"],
        ["start", "llama", "--model=-x"],
    ],
)
def test_a_model_never_begins_like_a_flag(cli, runs, words) -> None:
    outcome = cli(*words)

    assert (outcome.code, outcome.out) == (2, "")
    odd = words[-1].removeprefix("--model=")
    assert f"a model does not begin with '-': that would be a flag, got '{odd}'; see" in outcome.err
    assert runs.asked == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["set-model", "llama"], "arguments are required: MODEL"),
        (["set-model", "llama", ""], "a model is 1 to "),
        (["set-model", "llama", "org/new", "--wait"], "unknown flag '--wait'"),
        (["set-model", "llama", "org/new", "--state.dir"], "--state.dir: expected one argument"),
        (["set-model", "llama", "org/new", "--state.dir", "-x"], "--state.dir: expected one"),
        (["start", "llama", "--model"], "--model: expected one argument"),
        (["start", "llama", "--wiat"], "did you mean --wait?"),
    ],
)
def test_other_errors_stay_as_they_are(capfd, words, told) -> None:
    assert main(words) == 2

    err = capfd.readouterr().err
    assert told in err
    assert "that would be a flag" not in err
