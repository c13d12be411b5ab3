"""What operators ask of managed servers and of the configuration: bodies, answers, and refusals."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from tests.expose.snapshots import given_up, managed_server, server
from tests.expose_api.fake_agent import DONE
from tests.expose_api.test_http_api import error_of
from vllm_agent.config.model_id import MAX_MODEL_LENGTH
from vllm_agent.expose import api_operations
from vllm_agent.expose.advice import advice_on_server
from vllm_agent.expose.api_operations import LOOK_SECONDS, PATIENCE_SECONDS
from vllm_agent.expose.managed_request import MAX_PATIENCE_SECONDS
from vllm_agent.expose.operations import CannotReloadError, CannotServeError, NotManagedError
from vllm_agent.lifecycle.management import Management, Wish
from vllm_agent.lifecycle.operations import Answer, Outcome
from vllm_agent.lifecycle.reasons import Reason

SERVER = "/api/v1/servers/llama"
WRITES = ("start", "stop", "restart", "model", "ensure-healthy")
UNDER_WAY = Answer(Outcome.UNDER_WAY, "it loads")
HANG_SECONDS = 30.0
"""Only for what would never end."""


@pytest.fixture(autouse=True)
def _managed(fake) -> None:
    fake.show(managed_server(), server("watched"))


@pytest.mark.parametrize(
    ("write", "body", "asked"),
    [
        ("start", None, (Wish.START, None)),
        ("start", b"{}", (Wish.START, None)),
        ("start", b'{"model": null}', (Wish.START, None)),
        ("start", b'{"model": "org/new"}', (Wish.START, "org/new")),
        ("stop", None, (Wish.STOP, None)),
        ("stop", b"{}", (Wish.STOP, None)),
        ("restart", b"{}", (Wish.RESTART, None)),
        ("restart", b'{"model": "/models/new"}', (Wish.RESTART, "/models/new")),
        ("model", b'{"model": "org/new:Q4_K_M"}', (Wish.RESTART, "org/new:Q4_K_M")),
    ],
)
async def test_a_wish_reaches_the_owner_and_is_answered_with_the_server(
    control, fake, write, body, asked
) -> None:
    fake.became = (managed_server(model_name="after"),)

    response = await control.post(f"{SERVER}/{write}", data=body)

    assert response.status == 200
    assert fake.asked == [("llama", *asked)]
    assert (await response.json())["model_name"] == "after"


@pytest.mark.parametrize(
    ("write", "body", "code"),
    [
        ("start", b"{", "bad_json"),
        ("start", b"\xff", "bad_json"),
        ("start", b"[" * 10_000, "bad_json"),
        ("start", b"[]", "bad_body"),
        ("start", b'"org/new"', "bad_body"),
        ("start", b'{"modle": "org/new"}', "bad_body"),
        ("start", b'{"model": 5}', "bad_body"),
        ("start", b'{"model": ""}', "bad_body"),
        ("start", b'{"model": ["org/new"]}', "bad_body"),
        ("start", b'{"model": "-h"}', "bad_body"),
        ("start", b'{"model": "--trust-remote-code"}', "bad_body"),
        ("restart", b'{"model": "--api-key=x"}', "bad_body"),
        ("restart", b'{"model": "org/a\\nb"}', "bad_body"),
        ("restart", b'{"model": " org/new"}', "bad_body"),
        ("restart", b'{"model": "' + b"x" * (MAX_MODEL_LENGTH + 1) + b'"}', "bad_body"),
        ("model", None, "bad_body"),
        ("model", b"{}", "bad_body"),
        ("model", b'{"model": null}', "bad_body"),
        ("model", b'{"model": "-x/name"}', "bad_body"),
        ("stop", b'{"model": "org/new"}', "bad_body"),
        ("stop", b'{"force": true}', "bad_body"),
        ("ensure-healthy", b'{"timeout": 5}', "bad_body"),
        ("ensure-healthy", b'{"timeout_seconds": -1}', "bad_body"),
        ("ensure-healthy", b'{"timeout_seconds": true}', "bad_body"),
        ("ensure-healthy", b'{"timeout_seconds": "10m"}', "bad_body"),
        ("ensure-healthy", b'{"timeout_seconds": NaN}', "bad_json"),
        ("ensure-healthy", b'{"timeout_seconds": 1e999}', "bad_body"),
        ("ensure-healthy", b'{"timeout_seconds": 86401}', "bad_body"),
    ],
)
async def test_a_bad_request_asks_nothing(control, fake, write, body, code) -> None:
    response = await control.post(f"{SERVER}/{write}", data=body)

    assert response.status == 400
    error = await error_of(response)
    assert error["code"] == code
    assert error["hint"].startswith("Send {")
    assert (fake.asked, fake.asked_health) == ([], [])


def test_the_longest_wait_is_a_day() -> None:
    assert MAX_PATIENCE_SECONDS == 86_400


async def test_what_is_under_way_is_accepted(control, fake) -> None:
    fake.came = UNDER_WAY

    response = await control.post(f"{SERVER}/start")

    assert response.status == 202
    assert (await response.json())["name"] == "llama"


@pytest.mark.parametrize(
    ("write", "code", "what"),
    [
        ("start", "start_failed", "was not started"),
        ("restart", "start_failed", "was not started"),
        ("stop", "stop_failed", "was not stopped"),
        ("ensure-healthy", "start_failed", "was not started"),
    ],
)
async def test_a_failure_has_its_reason_and_the_advice_of_the_server(
    control, fake, write, code, what
) -> None:
    failed = given_up()
    fake.came, fake.became = Answer(Outcome.FAILED, "2 files miss", Reason.AIRGAPPED), (failed,)

    response = await control.post(f"{SERVER}/{write}")

    assert response.status == 409
    assert await error_of(response) == {
        "code": code,
        "message": f"'llama' {what} (airgapped): 2 files miss",
        "hint": advice_on_server(failed, Reason.AIRGAPPED),
    }


async def test_a_new_model_that_fails_names_the_way_back(control, fake) -> None:
    failed = given_up()
    asked = Management(model="org/new", model_before="org/old")
    fake.became = (replace(failed, life=replace(failed.life, management=asked)),)
    fake.came = Answer(Outcome.FAILED, "no such repository", Reason.MODEL_NOT_FOUND)

    response = await control.post(f"{SERVER}/model", json={"model": "org/new"})

    hint = (await error_of(response))["hint"]
    assert "huggingface.co/org/new" in hint
    assert hint.endswith("'vllm-agent set-model llama org/old' brings back the model before.")


async def test_a_failure_without_a_reason_leads_to_the_history(control, fake) -> None:
    fake.came = Answer(Outcome.FAILED, "")

    error = await error_of(await control.post(f"{SERVER}/stop"))

    assert error["message"] == "'llama' was not stopped"
    assert error["hint"] == "'vllm-agent history llama' says what happened."


async def test_a_wish_that_another_one_replaced(control, fake) -> None:
    fake.came = Answer(Outcome.SUPERSEDED, "a later request to stop it took its place")

    response = await control.post(f"{SERVER}/start")

    assert response.status == 409
    error = await error_of(response)
    assert error["code"] == "superseded"
    assert error["message"] == "'llama': a later request to stop it took its place"
    assert "vllm-agent status llama" in error["hint"]


async def test_a_server_that_is_only_watched_is_not_started(control, fake) -> None:
    fake.came = NotManagedError("'watched' is started by whoever runs it")

    response = await control.post("/api/v1/servers/watched/start")

    assert response.status == 409
    error = await error_of(response)
    assert (error["code"], error["message"]) == ("not_managed", str(fake.came))
    assert "mode: managed" in error["hint"]


async def test_a_model_that_would_not_be_served(control, fake) -> None:
    fake.came = CannotServeError("org/new", Reason.AIRGAPPED, "org/new is not in the cache")

    response = await control.post(f"{SERVER}/model", json={"model": "org/new"})

    assert response.status == 409
    error = await error_of(response)
    assert error["code"] == "model_refused"
    assert error["message"] == "'llama' was left as it is (airgapped): org/new is not in the cache"
    assert "org/new" in error["hint"]


@pytest.mark.parametrize("write", WRITES)
async def test_a_server_that_is_unknown_before_or_by_then(control, fake, write) -> None:
    body = {"model": "org/new"} if write == "model" else None
    response = await control.post(f"/api/v1/servers/lama/{write}", json=body)
    assert (response.status, (await error_of(response))["hint"]) == (404, "Did you mean llama?")

    fake.came = KeyError("llama")
    response = await control.post(f"{SERVER}/{write}", json=body)
    assert (response.status, (await error_of(response))["code"]) == (404, "unknown_server")

    fake.came, fake.became = DONE, (server("other"),)
    response = await control.post(f"{SERVER}/{write}", json=body)
    assert (response.status, (await error_of(response))["code"]) == (404, "unknown_server")


# --- ensure-healthy


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (None, 0),
        (b"{}", 0),
        (b'{"timeout_seconds": 600}', 600),
        (b'{"timeout_seconds": 0.5}', 0.5),
        (b'{"timeout_seconds": 86400}', 86_400),
    ],
)
async def test_ensure_healthy_waits_as_long_as_it_is_told_to(control, fake, body, seconds) -> None:
    response = await control.post(f"{SERVER}/ensure-healthy", data=body)

    assert response.status == 200
    assert fake.asked_health == [("llama", seconds)]


async def test_what_does_not_run_yet_is_a_timeout_for_who_waited(control, fake) -> None:
    fake.came = UNDER_WAY

    assert (await control.post(f"{SERVER}/ensure-healthy")).status == 202
    response = await control.post(f"{SERVER}/ensure-healthy", json={"timeout_seconds": 2})

    assert response.status == 504
    error = await error_of(response)
    assert error["code"] == "timeout"
    assert error["message"] == "'llama' does not run after 2 s: it loads"


async def test_a_watched_server_that_does_not_run_is_only_told_of(control, fake) -> None:
    fake.came = Answer(Outcome.FAILED, "it is failed: refused", Reason.UNREACHABLE)

    response = await control.post("/api/v1/servers/watched/ensure-healthy")

    assert response.status == 409
    error = await error_of(response)
    assert error["code"] == "not_healthy"
    assert error["message"] == "'watched' does not run (unreachable): it is failed: refused"


# --- what takes long


async def leave_a_start(control, fake) -> None:
    """A client asks for a start and goes away; the server of these tests cancels its handler."""
    fake.under_way, fake.may_go_on = asyncio.Event(), asyncio.Event()
    request = asyncio.create_task(control.post(f"{SERVER}/start"))
    await asyncio.wait_for(fake.under_way.wait(), HANG_SECONDS)
    (handler,) = (task for task in asyncio.all_tasks() if "RequestHandler.start" in repr(task))
    request.cancel()
    await asyncio.wait({request, handler}, timeout=HANG_SECONDS)
    assert handler.done()
    fake.may_go_on.set()


async def test_a_client_that_goes_away_cancels_nothing(control, fake) -> None:
    await leave_a_start(control, fake)

    await _until(lambda: fake.asked == [("llama", Wish.START, None)])


async def test_a_refusal_that_nobody_hears_is_no_fault(control, fake, caplog) -> None:
    fake.came = NotManagedError("'llama' is started by whoever runs it")

    await leave_a_start(control, fake)

    await _until(lambda: fake.asked == [("llama", Wish.START, None)])
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_the_writes_of_others_do_not_wait_for_one_under_way(control, fake) -> None:
    fake.under_way, fake.may_go_on = asyncio.Event(), asyncio.Event()
    slow = asyncio.create_task(control.post(f"{SERVER}/start"))
    await asyncio.wait_for(fake.under_way.wait(), HANG_SECONDS)

    response = await control.post(f"{SERVER}/maintenance", json={"on": True})

    assert response.status == 200
    fake.may_go_on.set()
    assert (await slow).status == 200


async def test_after_all_patience_it_is_told_to_be_under_way(control, fake, monkeypatch) -> None:
    monkeypatch.setattr(api_operations, "PATIENCE_SECONDS", 0.01)
    fake.may_go_on = asyncio.Event()

    response = await control.post(f"{SERVER}/stop")

    assert response.status == 202
    assert fake.asked == []
    fake.may_go_on.set()
    await _until(lambda: fake.asked == [("llama", Wish.STOP, None)])


def test_patience_outlasts_the_slowest_stop() -> None:
    longest_stop_timeout = 600.0
    assert longest_stop_timeout < PATIENCE_SECONDS


async def test_a_fault_is_told_though_the_client_went_away(control, fake, caplog) -> None:
    fake.came = RuntimeError("a fault of ours")

    await leave_a_start(control, fake)

    await _until(lambda: "could not do what was asked" in caplog.text)
    assert "a fault of ours" in caplog.text


async def test_a_fault_is_told_though_the_client_has_its_answer(
    control, fake, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(api_operations, "PATIENCE_SECONDS", 0.01)
    fake.may_go_on, fake.came = asyncio.Event(), RuntimeError("a fault of ours")
    assert (await control.post(f"{SERVER}/stop")).status == 202

    with caplog.at_level(logging.ERROR):
        fake.may_go_on.set()
        await _until(lambda: "could not do what was asked" in caplog.text)
    assert "a fault of ours" in caplog.text


async def _until(is_so) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not is_so():  # noqa: ASYNC110 - what is awaited sets no event
            await asyncio.sleep(0)


# --- TCP


@pytest.mark.parametrize(
    ("write", "command"),
    [
        ("start", "vllm-agent start llama"),
        ("stop", "vllm-agent stop llama"),
        ("restart", "vllm-agent restart llama"),
        ("model", "vllm-agent set-model llama MODEL"),
        ("ensure-healthy", "vllm-agent ensure-healthy llama"),
        ("forget", "vllm-agent forget llama"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
async def test_every_write_over_tcp_is_refused_with_its_command(  # noqa: PLR0917 - fixtures
    reader, reloader, fake, method, write, command
) -> None:
    for client in (reader, reloader):
        response = await client.request(method, f"{SERVER}/{write}", data=b"{}")

        assert response.status == 403
        error = await error_of(response)
        assert (error["code"], error["hint"]) == ("read_only", f"On that host run: {command}")
    assert (fake.asked, fake.asked_health) == ([], [])


# --- while the agent begins


@pytest.mark.parametrize("write", WRITES)
async def test_a_request_while_the_agent_begins_waits_until_the_server_is_known(
    control, fake, write
) -> None:
    fake.show(is_ready=False)
    body = b'{"model": "org/new"}' if write == "model" else b""
    asking = asyncio.create_task(control.post(f"{SERVER}/{write}", data=body))

    done, _ = await asyncio.wait({asking}, timeout=3 * LOOK_SECONDS)
    assert not done
    assert (fake.asked, fake.asked_health) == ([], [])
    fake.show(managed_server(), is_ready=False)

    assert (await asking).status == 200
    assert len(fake.asked) + len(fake.asked_health) == 1


async def test_it_waits_no_longer_than_the_agent_needs_to_begin(control, fake, monkeypatch) -> None:
    monkeypatch.setattr(api_operations, "BEGINNING_SECONDS", 3600.0)
    fake.show(is_ready=False)
    asking = asyncio.create_task(control.post(f"{SERVER}/start"))
    done, _ = await asyncio.wait({asking}, timeout=3 * LOOK_SECONDS)
    assert not done
    fake.show(server("watched"))

    async with asyncio.timeout(HANG_SECONDS):
        response = await asking

    assert (response.status, (await error_of(response))["code"]) == (404, "unknown_server")


async def test_an_agent_that_is_never_ready_answers_all_the_same(
    control, fake, monkeypatch
) -> None:
    monkeypatch.setattr(api_operations, "BEGINNING_SECONDS", 0.01)
    fake.show(is_ready=False)

    async with asyncio.timeout(HANG_SECONDS):
        response = await control.post(f"{SERVER}/start")

    assert (response.status, (await error_of(response))["code"]) == (404, "unknown_server")
    assert fake.asked == []


async def test_an_agent_that_has_begun_answers_at_once(control, fake, monkeypatch) -> None:
    monkeypatch.setattr(api_operations, "LOOK_SECONDS", 3600.0)
    async with asyncio.timeout(HANG_SECONDS):
        unknown = await control.post("/api/v1/servers/nobody/start")
        fake.show(managed_server(), is_ready=False)
        known = await control.post(f"{SERVER}/start")

    assert (unknown.status, known.status) == (404, 200)


# --- reload


async def test_reload_over_the_socket_and_where_it_is_allowed_over_tcp(
    control, reloader, fake
) -> None:
    for client in (control, reloader):
        response = await client.post("/-/reload")
        assert response.status == 200
        assert await response.text() == "The configuration was reloaded.\n"
    assert fake.reloads == 2


async def test_reload_over_tcp_is_refused_where_it_is_not_allowed(reader, fake) -> None:
    for method in ("POST", "GET"):
        response = await reader.request(method, "/-/reload")
        assert response.status == 403
        error = await error_of(response)
        assert error["code"] == "lifecycle_disabled"
        assert "--web.enable-lifecycle" in error["hint"]
    assert fake.reloads == 0


async def test_a_reload_is_posted(control, reloader, fake) -> None:
    for client in (control, reloader):
        response = await client.get("/-/reload")
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert "Allow header" in (await error_of(response))["hint"]
    assert fake.reloads == 0


async def test_a_configuration_that_cannot_be_used_is_told_in_full(control, fake, caplog) -> None:
    problems = "x.yml:3: servers[0].name: is missing\nx.yml:9: gpu: must be a mapping"
    fake.cannot_reload = CannotReloadError(problems)

    with caplog.at_level(logging.ERROR):
        response = await control.post("/-/reload")

    assert response.status == 500
    error = await error_of(response)
    assert (error["code"], error["message"]) == ("cannot_reload", problems)
    assert "stays" in error["hint"]
    assert caplog.records == []


async def test_a_reload_that_takes_long_is_accepted(control, fake, monkeypatch) -> None:
    monkeypatch.setattr(api_operations, "PATIENCE_SECONDS", 0.01)
    fake.may_go_on = asyncio.Event()

    assert (await control.post("/-/reload")).status == 202

    fake.may_go_on.set()
    await _until(lambda: fake.reloads == 1)
