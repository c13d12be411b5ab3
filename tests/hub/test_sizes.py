"""What the Hub is asked by the real huggingface_hub, in a process of its own, and what it says."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from tests.hub.model import REPO, SHARD_BYTES, sharded, single
from tests.hub.standin import GATED, NOT_FOUND, TOO_MANY, UNAUTHORIZED, Hub, Refusal
from vllm_agent import __version__
from vllm_agent.host.hf_hub import sizes as sizes_module
from vllm_agent.host.hf_hub.sizes import HubSizes

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY = "hf_canary-of-a-token"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(REPO, sharded()) as running:
        yield running


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.__dict__["error"] for record in caplog.records]


async def test_weights_that_are_fetched_are_summed(hub):
    sizes = HubSizes({"HF_ENDPOINT": hub.url})
    assert sizes.known(REPO) is None
    assert await sizes.ask(REPO) == sizes.known(REPO, "main") == 3 * SHARD_BYTES
    hub.files = single()
    assert await sizes.ask(REPO, "v2") == SHARD_BYTES
    paths = [path for _, path, _ in hub.requests]
    assert paths == [
        f"/api/models/{REPO}/revision/main?blobs=true",
        f"/api/models/{REPO}/revision/v2?blobs=true",
    ]


async def test_nothing_of_an_account_goes_out(hub, tmp_path, monkeypatch):
    home = tmp_path / "home"
    (home / ".cache/huggingface").mkdir(parents=True)
    (home / ".cache/huggingface/token").write_text(CANARY)
    (home / ".netrc").write_text(f"machine 127.0.0.1 login x password {CANARY}\n")
    (home / ".netrc").chmod(0o600)
    secrets = {"HOME": str(home), "HF_TOKEN": CANARY, "HUGGING_FACE_HUB_TOKEN": CANARY}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert await HubSizes({"HF_ENDPOINT": hub.url, **secrets}).ask(REPO) == 3 * SHARD_BYTES
    ((_, path, headers),) = hub.requests
    assert "authorization" not in headers
    assert CANARY not in path + str(headers)


async def test_nothing_that_tells_one_host_from_another_goes_out(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_USER_AGENT_ORIGIN", "somewhere")
    assert await HubSizes({"HF_ENDPOINT": hub.url}).ask(REPO) == 3 * SHARD_BYTES
    ((method, _, headers),) = hub.requests
    sent = {name.lower(): value for name, value in headers.items()}
    assert method == "GET"
    assert sent.pop("user-agent") == f"vllm-agent/{__version__}"
    assert sent.pop("host") == hub.url.removeprefix("http://")
    # What every client of HTTP says of itself.
    assert sent.keys() <= {"accept", "accept-encoding", "connection"}


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (UNAUTHORIZED, "it answered 401 (HfHubHTTPError)"),
        (Refusal(401, "RepoNotFound"), "it answered 401 (RepositoryNotFoundError)"),
        (GATED, "it answered 403 (GatedRepoError)"),
        (NOT_FOUND, "it answered 404 (RepositoryNotFoundError)"),
        (TOO_MANY, "it answered 429 (HfHubHTTPError)"),
    ],
)
async def test_refusals_are_told_once(hub, caplog, refusal, said):
    caplog.set_level(logging.DEBUG, "vllm_agent")
    hub.refusal = refusal
    sizes = HubSizes({"HF_ENDPOINT": hub.url})
    assert [await sizes.ask(REPO) for _ in range(3)] == [None] * 3
    assert len(hub.requests) == 1
    assert errors(caplog) == [said]


async def test_hub_that_does_not_answer_is_given_up(hub, caplog, monkeypatch):
    monkeypatch.setattr(sizes_module, "DEADLINE_SECONDS", 1.5)
    hub.is_hanging = True
    assert await HubSizes({"HF_ENDPOINT": hub.url}).ask(REPO) is None
    (error,) = errors(caplog)
    assert error.endswith("did not answer within 1.5 s")


async def test_hub_that_is_not_there(caplog):
    with Hub(REPO, {}) as gone:
        url = gone.url
    assert await HubSizes({"HF_ENDPOINT": url}).ask(REPO) is None
    assert errors(caplog) == ["it could not be asked (ConnectError)"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}"}, "it lists no weights, or several kinds"),
        ({"model-q4.gguf": b"x"}, "it lists no weights, or several kinds"),
        ({}, "it lists no weights, or several kinds"),
        ({"a.safetensors": b""}, "its answer is no size"),
    ],
)
async def test_repository_without_weights_has_no_size(hub, caplog, files, said):
    hub.files = files
    assert await HubSizes({"HF_ENDPOINT": hub.url}).ask(REPO) is None
    assert errors(caplog) == [said]
