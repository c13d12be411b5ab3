"""The API as clients meet it: answers, entity tags, and errors that say what to do next."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from yarl import URL

from tests.expose.snapshots import (
    NOW,
    ad_hoc_server,
    crashed_server,
    device,
    ended_local_server,
    gpu,
    life,
    local_server,
    orphaned_device,
    server,
    tree,
)
from vllm_agent.expose import api_writes, encoded_views
from vllm_agent.expose.family import label_value
from vllm_agent.expose.http_api import MAX_BODY_BYTES
from vllm_agent.lifecycle.server_life import Launch
from vllm_agent.lifecycle.states import Phase
from vllm_agent.snapshot import CollectorSnapshot
from vllm_agent.store import History, LaunchRecord

if TYPE_CHECKING:
    from aiohttp import ClientResponse

READS = (
    *("/", "/custom", "/-/healthy", "/-/ready", "/api/v1/servers", "/api/v1/servers/llama"),
    *("/api/v1/servers/llama/history", "/api/v1/gpus", "/api/v1/http_sd"),
)
MAINTENANCE = "/api/v1/servers/llama/maintenance"
FORGET = "/api/v1/servers/qwen/forget"


async def error_of(response: ClientResponse) -> dict[str, str]:
    body = await response.json()
    assert body.keys() == {"error"}
    error: dict[str, str] = body["error"]
    assert error.keys() == {"code", "message", "hint"}
    assert all(error.values())
    return error


@pytest.mark.parametrize("path", READS)
async def test_reads_answer_get_and_head(reader, path) -> None:
    got = await reader.get(path)
    head = await reader.head(path)

    assert (got.status, head.status) == (200, 200)
    assert await head.read() == b""
    assert got.headers["X-Content-Type-Options"] == "nosniff"
    assert got.headers["Cache-Control"] in {"no-cache", "no-store"}
    assert "Access-Control-Allow-Origin" not in got.headers


async def test_health_and_readiness(reader, fake) -> None:
    assert await (await reader.get("/-/healthy")).text() == "vllm-agent is healthy.\n"
    assert await (await reader.get("/-/ready")).text() == "vllm-agent is ready.\n"

    fake.show(is_ready=False)
    response = await reader.get("/-/ready")
    assert response.status == 503
    assert "not ready" in await response.text()
    assert (await reader.get("/-/healthy")).status == 200


async def test_the_list_has_the_agent_and_every_server(reader) -> None:
    body = await (await reader.get("/api/v1/servers")).json()

    assert body["agent"]["ready"] is True
    assert [s["name"] for s in body["servers"]] == ["llama", "qwen"]


async def test_an_unchanged_list_is_not_sent_again(reader, fake) -> None:
    first = await reader.get("/api/v1/servers")
    etag = first.headers["ETag"]

    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = await reader.get("/api/v1/servers", headers={"If-None-Match": known})
        assert (again.status, await again.read()) == (304, b"")
        assert again.headers["ETag"] == etag

    fake.show(crashed_server())
    changed = await reader.get("/api/v1/servers", headers={"If-None-Match": etag})
    assert changed.status == 200
    assert [s["name"] for s in (await changed.json())["servers"]] == ["qwen"]


async def test_the_tag_changes_with_a_collector_and_with_the_agent(reader, fake) -> None:
    tags = [(await reader.get("/api/v1/servers")).headers["ETag"]]
    broken = (CollectorSnapshot(name="store", is_up=False, detail="disk full"),)
    fake.snapshot = replace(fake.snapshot, collectors=broken)
    tags.append((await reader.get("/api/v1/servers")).headers["ETag"])
    fake.snapshot = replace(fake.snapshot, started=NOW)
    tags.append((await reader.get("/api/v1/servers")).headers["ETag"])
    fake.snapshot = replace(fake.snapshot, discovered=2)
    tags.append((await reader.get("/api/v1/servers")).headers["ETag"])

    assert len(set(tags)) == 4


async def test_a_server_that_did_not_change_is_not_encoded_again(reader, fake, monkeypatch) -> None:
    await reader.get("/api/v1/servers")
    encoded = []

    def view(changed):
        encoded.append(changed.name)
        return {"name": changed.name}

    monkeypatch.setattr(encoded_views, "server_view", view)

    fake.show(fake.snapshot.servers[0], crashed_server("new"))
    body = await (await reader.get("/api/v1/servers")).json()

    assert encoded == ["new"]
    assert [s["name"] for s in body["servers"]] == ["llama", "new"]


async def test_one_server_has_a_tag_of_its_own(reader, fake) -> None:
    first = await reader.get("/api/v1/servers/llama")
    headers = {"If-None-Match": first.headers["ETag"]}

    fake.show(fake.snapshot.servers[0], crashed_server("other"))
    assert (await reader.get("/api/v1/servers/llama", headers=headers)).status == 304

    fake.show(server(life=life(Phase.CRASHED)))
    changed = await reader.get("/api/v1/servers/llama", headers=headers)
    assert (await changed.json())["state"] == "crashed"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a@8000", "a%408000"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a{b", "a%7Bb"),
        ("ü", "%C3%BC"),
    ],
)
async def test_names_are_decoded_once(reader, fake, name, path) -> None:
    fake.show(server(name))

    response = await reader.get(URL(f"/api/v1/servers/{path}", encoded=True))

    assert (await response.json())["name"] == name


async def test_an_unknown_server_is_told_near_names(reader) -> None:
    response = await reader.get("/api/v1/servers/lama")

    assert response.status == 404
    error = await error_of(response)
    assert error["code"] == "unknown_server"
    assert error["hint"] == "Did you mean llama?"


async def test_an_unknown_server_that_is_near_to_none(reader, fake) -> None:
    error = await error_of(await reader.get("/api/v1/servers/zzz/history"))
    assert "/api/v1/servers" in error["hint"]

    fake.show()
    error = await error_of(await reader.get("/api/v1/servers/zzz"))
    assert "vllm-agent doctor" in error["hint"]


async def test_over_the_socket_the_hint_is_a_command(control) -> None:
    error = await error_of(await control.get("/api/v1/servers/zzz"))

    assert error["hint"] == "'vllm-agent status' lists the names that there are."


@pytest.mark.parametrize("path", [*READS, "/nowhere", MAINTENANCE, FORGET])
async def test_no_answer_tells_versions_of_what_serves_it(reader, control, path) -> None:
    for client in (reader, control):
        assert (await client.get(path)).headers["Server"] == "vllm-agent"


async def test_an_unknown_path(reader) -> None:
    response = await reader.get("/api/v2")

    assert response.status == 404
    assert (await error_of(response))["code"] == "unknown_path"


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_tcp_has_no_method_that_writes(reader, method, path) -> None:
    response = await reader.request(method, path)

    assert response.status == 405
    assert set(response.headers["Allow"].split(",")) == {"GET", "HEAD"}
    assert "control socket" in (await error_of(response))["hint"]


async def test_a_write_over_tcp_is_refused_and_sent_to_the_command(reader, fake) -> None:
    response = await reader.post(MAINTENANCE, json={"on": True})

    assert response.status == 403
    assert "Allow" not in response.headers
    error = await error_of(response)
    assert error["code"] == "read_only"
    assert error["hint"] == "On that host run: vllm-agent maintenance llama on|off"
    assert fake.asked_maintenance == []


async def test_a_name_in_a_suggested_command_is_quoted(reader) -> None:
    response = await reader.post("/api/v1/servers/$(reboot)/maintenance")

    assert "maintenance '$(reboot)' on" in (await error_of(response))["hint"]
    response = await reader.post("/api/v1/servers/$(reboot)/forget")
    assert (await error_of(response))["hint"].endswith(": vllm-agent forget '$(reboot)'")


@pytest.mark.parametrize(("query", "limit"), [("", 100), ("?limit=1", 1), ("?limit=1000", 1000)])
async def test_history_asks_for_as_much_as_wanted(reader, fake, query, limit) -> None:
    response = await reader.get(f"/api/v1/servers/llama/history{query}")

    assert await response.json() == {"server": "llama", "transitions": [], "launches": []}
    assert fake.asked_history == [("llama", limit)]


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1e2", "²", "9" * 5000])
async def test_a_bad_limit(reader, fake, limit) -> None:
    response = await reader.get("/api/v1/servers/llama/history", params={"limit": limit})

    assert response.status == 400
    assert (await error_of(response))["code"] == "bad_limit"
    assert fake.asked_history == []


LINE = "ERROR 06-15 15:08:09 [serving.py:81] the prompt of a user"


async def test_lines_of_a_log_leave_through_the_control_socket_only(reader, control, fake) -> None:
    ended = ended_local_server("llama")
    assert ended.life.last_ending is not None
    ending = replace(ended.life.last_ending, log=(LINE, "second"), holder="python3 (PID 7)")
    launch = Launch(1, None, NOW, has_served=True)
    fake.show(replace(ended, life=replace(ended.life, last_ending=ending, launch=launch)))
    fake.past = History(launches=(LaunchRecord(launch, ending),))

    for path in (*READS, "/metrics"):
        for client in (reader, control):
            text = await (await client.get(path)).text()
            assert (LINE in text) == (client is control and path.endswith("/history")), path

    (told,) = (await (await control.get("/api/v1/servers/llama/history")).json())["launches"]
    assert told["ending"]["log"] == [LINE, "second"]
    assert told["ending"]["advice"].startswith("Run 'vllm-agent history --log llama' on its host")
    (open_,) = (await (await reader.get("/api/v1/servers/llama/history")).json())["launches"]
    assert open_["ending"] == {k: v for k, v in told["ending"].items() if k != "log"}
    assert open_["ending"]["holder"] == "python3 (PID 7)"


async def test_a_fault_is_logged_once_and_tells_nothing_of_the_inside(reader, fake, caplog) -> None:
    fake.fault = RuntimeError("secret of the inside")

    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            response = await reader.get("/api/v1/servers/llama/history")
            assert response.status == 500
            assert (await error_of(response))["code"] == "internal_error"
            assert "secret" not in await response.text()

    assert len(caplog.records) == 1
    assert "secret of the inside" in caplog.text


async def test_gpus_over_both_addresses(reader, control, fake) -> None:
    empty: dict[str, object] = {"collector": None, "sights": [], "gpus": []}
    for client in (reader, control):
        assert await (await client.get("/api/v1/gpus")).json() == empty

    fake.show(gpus=(device(), orphaned_device()))

    for client in (reader, control):
        response = await client.get("/api/v1/gpus")
        assert response.content_type == "application/json"
        assert [shown["uuid"] for shown in (await response.json())["gpus"]] == ["GPU-0", "GPU-1"]


async def test_gpus_are_sent_again_only_when_a_value_changes(reader, fake) -> None:
    fake.show(gpus=(device(),))
    first = await reader.get("/api/v1/gpus")
    known = {"If-None-Match": first.headers["ETag"]}

    fake.show(crashed_server(), gpus=(device(),))
    again = await reader.get("/api/v1/gpus", headers=known)
    assert (again.status, await again.read()) == (304, b"")

    tags = {first.headers["ETag"]}
    blind = CollectorSnapshot("gpu", is_up=False, detail="does not answer")
    for shown in (
        {"gpus": (device(gpu=gpu(temperature_celsius=62.0)),)},
        {"gpus": (device(servers={"llama": 1}),)},
        {"gpus": ()},
        {"gpus": (), "collectors": (blind,)},
    ):
        fake.snapshot = replace(fake.snapshot, **shown)
        changed = await reader.get("/api/v1/gpus", headers=known)
        assert changed.status == 200
        tags.add(changed.headers["ETag"])
    assert len(tags) == 5


async def test_http_sd_lists_what_prometheus_can_reach(reader, fake) -> None:
    fake.show(
        server("a", url="http://127.0.0.1:8000"),
        server("b", url="https://gpu7.example.org/qwen", life=life(Phase.CRASHED)),
        server("c", url="http://[::1]:9000"),
        server("stopped", life=life(Phase.ABSENT, maintenance_until_unix_seconds=2e9)),
        server("planned", life=life(maintenance_until_unix_seconds=2e9)),
        server("absent", life=life(Phase.ABSENT)),
        server("socket", url="unix:///run/vllm.sock"),
        server("odd", url="whatever"),
    )

    response = await reader.get("/api/v1/http_sd")

    assert response.content_type == "application/json"
    assert await response.json() == [
        _target("127.0.0.1:8000", "a", "http", "/metrics"),
        _target("gpu7.example.org:443", "b", "https", "/qwen/metrics"),
        _target("[::1]:9000", "c", "http", "/metrics"),
        _target("127.0.0.1:8000", "planned", "http", "/metrics"),
        _target("127.0.0.1:8000", "absent", "http", "/metrics"),
    ]


def _target(address: str, name: str, scheme: str, path: str) -> dict[str, object]:
    labels = {"server": name, "__scheme__": scheme, "__metrics_path__": path}
    return {"targets": [address], "labels": labels}


async def test_http_sd_has_discovered_servers_but_those_that_nobody_waits_for(reader, fake) -> None:
    long = "x" * 200
    fake.show(
        local_server("unit"),
        ad_hoc_server("shell@8000", url="http://172.17.0.2:8000"),
        ad_hoc_server("left@8001", life=life(Phase.ABSENT)),
        local_server("stopped", life=life(Phase.ABSENT)),
        local_server("headless", url=""),
        local_server("socket", url="unix:///run/vllm.sock"),
        local_server(long),
    )

    assert await (await reader.get("/api/v1/http_sd")).json() == [
        _target("127.0.0.1:8000", "unit", "http", "/metrics"),
        _target("172.17.0.2:8000", "shell@8000", "http", "/metrics"),
        _target("127.0.0.1:8000", "stopped", "http", "/metrics"),
        _target("127.0.0.1:8000", label_value(long), "http", "/metrics"),
    ]


async def test_http_sd_without_targets_is_an_empty_list(reader, fake) -> None:
    fake.show()

    assert await (await reader.get("/api/v1/http_sd")).json() == []


@pytest.mark.parametrize(
    ("body", "until"),
    [
        ({"on": True}, float("inf")),
        ({"on": True, "for_seconds": None}, float("inf")),
        ({"on": True, "for_seconds": 1800}, NOW.unix_seconds + 1800),
        ({"on": False}, None),
    ],
)
async def test_maintenance_over_the_socket(control, fake, body, until) -> None:
    response = await control.post(MAINTENANCE, json=body)

    assert response.status == 200
    assert fake.asked_maintenance == [("llama", until)]
    view = await response.json()
    assert (view["name"], view["in_maintenance"]) == ("llama", until is not None)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"{", "bad_json"),
        (b"\xff", "bad_json"),
        (b"[" * 10_000, "bad_json"),
        (b'{"on": true, "for_seconds": NaN}', "bad_json"),
        (b"[]", "bad_body"),
        (b"{}", "bad_body"),
        (b'{"on": 1}', "bad_body"),
        (b'{"on": true, "until": 5}', "bad_body"),
        (b'{"on": true, "for_seconds": 0}', "bad_body"),
        (b'{"on": true, "for_seconds": true}', "bad_body"),
        (b'{"on": true, "for_seconds": "30m"}', "bad_body"),
        (b'{"on": true, "for_seconds": 1e999}', "bad_body"),
        (b'{"on": true, "for_seconds": 1' + b"0" * 400 + b"}", "bad_body"),
        (b'{"on": false, "for_seconds": 5}', "bad_body"),
    ],
)
async def test_a_bad_request_for_maintenance_changes_nothing(control, fake, body, code) -> None:
    response = await control.post(MAINTENANCE, data=body)

    assert response.status == 400
    assert (await error_of(response))["code"] == code
    assert fake.asked_maintenance == []


async def test_a_body_beyond_the_bound(control, fake) -> None:
    response = await control.post(MAINTENANCE, data=b" " * (MAX_BODY_BYTES + 1))

    assert response.status == 413
    assert (await error_of(response))["code"] == "body_too_large"
    assert fake.asked_maintenance == []


async def test_maintenance_of_an_unknown_server(control, fake) -> None:
    response = await control.post("/api/v1/servers/lama/maintenance", json={"on": True})

    assert response.status == 404
    assert fake.asked_maintenance == []


async def test_get_on_a_write_path_of_the_socket(control) -> None:
    response = await control.get(MAINTENANCE)

    assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_a_server_whose_owner_does_not_answer(control, fake, monkeypatch) -> None:
    monkeypatch.setattr(api_writes, "WRITE_DEADLINE_SECONDS", 0.01)
    fake.is_stuck = True

    response = await control.post(MAINTENANCE, json={"on": True})

    assert response.status == 503
    assert (await error_of(response))["code"] == "not_in_time"


@pytest.mark.parametrize("ended", [Phase.CRASHED, Phase.ABSENT])
async def test_a_discovered_server_that_ended_can_be_forgotten(control, fake, ended) -> None:
    gone = ended_local_server()
    fake.show(server(), replace(gone, life=replace(gone.life, phase=ended)))

    response = await control.post(FORGET)

    assert (response.status, await response.read()) == (204, b"")
    assert fake.asked_forget == ["qwen"]
    assert (await control.get("/api/v1/servers/qwen")).status == 404


ALIVE = [phase for phase in Phase if phase not in {Phase.CRASHED, Phase.ABSENT}]


@pytest.mark.parametrize("phase", ALIVE)
async def test_what_lives_is_not_forgotten(control, fake, phase) -> None:
    fake.show(local_server("qwen", life=life(phase), tree=None))

    response = await control.post(FORGET)

    assert response.status == 409
    error = await error_of(response)
    assert error["code"] == "still_there"
    assert error["message"].startswith("'qwen' is ")
    assert fake.asked_forget == []


async def test_a_process_that_is_there_is_not_forgotten_whatever_the_phase(control, fake) -> None:
    fake.show(ended_local_server(tree=tree(is_main_alive=True)))

    assert (await control.post(FORGET)).status == 409
    assert fake.asked_forget == []


async def test_a_configured_server_is_not_forgotten(control, fake) -> None:
    fake.show(ended_local_server(is_discovered=False))

    response = await control.post(FORGET)

    assert response.status == 409
    error = await error_of(response)
    assert error["code"] == "configured"
    assert "configuration file" in error["hint"]
    assert fake.asked_forget == []


async def test_a_server_that_comes_back_meanwhile_is_told(control, fake) -> None:
    fake.show(ended_local_server())
    fake.comes_back = True

    response = await control.post(FORGET)

    assert response.status == 409
    assert "come back" in (await error_of(response))["message"]


async def test_forgetting_an_unknown_server_or_one_whose_owner_does_not_answer(
    control, fake, monkeypatch
) -> None:
    assert (await control.post("/api/v1/servers/zzz/forget")).status == 404
    monkeypatch.setattr(api_writes, "WRITE_DEADLINE_SECONDS", 0.01)
    fake.show(ended_local_server())
    fake.is_stuck = True

    response = await control.post(FORGET)

    assert response.status == 503
    assert (await error_of(response))["code"] == "not_in_time"


async def test_forgetting_over_tcp_is_refused_and_sent_to_the_command(reader, fake) -> None:
    fake.show(ended_local_server())

    response = await reader.post(FORGET)

    assert response.status == 403
    assert (await error_of(response))["hint"] == "On that host run: vllm-agent forget qwen"
    assert fake.asked_forget == []
