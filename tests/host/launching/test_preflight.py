"""All that a start needs of its host, in its order."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.host.gpu.scene import gpu
from tests.host.hf_hub.cache import Cache
from tests.host.launching.fake_gpus import FakeGpus
from tests.host.launching.plans import DEADLINE_SECONDS, a_plan, own_name, some_patience
from vllm_agent.host.clock import now
from vllm_agent.host.launching import disk_room, gpu_room, model_at_hand, program
from vllm_agent.host.launching import preflight as module
from vllm_agent.host.launching.asking import HUNG_SECONDS, HangsError, ask
from vllm_agent.host.launching.preflight import Refusal, preflight
from vllm_agent.host.local_host import LocalHost
from vllm_agent.host.patience import MAX_HUNG_THREADS, Patience, TooManyHung
from vllm_agent.host.proc import Proc
from vllm_agent.lifecycle.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vllm_agent.host.launching.plan import LaunchPlan

SOON_SECONDS = 0.3
"""Long enough for all that does not hang."""


class Scene:
    """A host on which a start of `plan` lacks nothing, until a test takes something away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "vllm"
        self.program.write_text("#!/bin/sh\n")
        self.program.chmod(0o755)
        self.cache = Cache(folder)
        self.cache.index("model.safetensors")
        self.cache.add("model.safetensors")
        self.gpus = FakeGpus((gpu("0"),))
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]

    def plan(self, **changes: object) -> LaunchPlan:
        env = {
            "HF_HUB_CACHE": str(self.folder / "cache"),
            "CUDA_VISIBLE_DEVICES": "0",
        }
        flags = ("--host", "127.0.0.1", "--port", str(self.port))
        facts = {"command": str(self.program), "user": own_name(), "env": env} | changes
        return a_plan(*flags, is_airgapped=True, **facts)  # type: ignore[arg-type]

    async def preflight(self, plan: LaunchPlan, patience: Patience | None = None) -> Refusal | None:
        host = LocalHost(Proc(), tuple, now, lambda _: None, gpus=self.gpus)  # type: ignore[arg-type]
        with some_patience() as own:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await preflight(plan, host, self.folder, patience or own)


@pytest.fixture
def scene(tmp_path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """What a hung disk waits for; at the end of the test it comes back."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_start_that_lacks_nothing(scene):
    assert await scene.preflight(scene.plan()) is None
    without_gpus = LocalHost(Proc(), tuple, now, lambda _: None)
    with some_patience() as own:
        assert await preflight(scene.plan(), without_gpus, scene.folder, own) is None


async def test_the_first_reason_in_order_is_told(scene, monkeypatch):
    """Everything is wrong; one thing after the other is mended."""
    monkeypatch.setattr(gpu_room, "GPU_MEMORY_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(disk_room, "MIN_FREE_BYTES", 2**70)
    scene.gpus = FakeGpus((gpu("0", memory_free_bytes=0),))
    scene.cache.snapshot.joinpath("model.safetensors").unlink()
    wrong = {
        "user": "nobody-of-this-name",
        "command": "/nonexistent/vllm",
        "model": "-x",
        "gpus": 2,
    }
    listener = socket.create_server(("127.0.0.1", scene.port))

    async def reason(**changes: object) -> Reason | None:
        refusal = await scene.preflight(scene.plan(**changes))
        return None if refusal is None else refusal.reason

    try:
        assert await reason(**wrong) is Reason.SPAWN_FAILED
        del wrong["user"]
        assert await reason(**wrong) is Reason.SPAWN_FAILED
        del wrong["command"]
        assert await reason(**wrong) is Reason.MODEL_NOT_FOUND
        del wrong["model"]
        assert await reason(**wrong) is Reason.AIRGAPPED
        scene.cache.add("weights.safetensors")
        scene.cache.snapshot.joinpath("weights.safetensors").rename(
            scene.cache.snapshot / "model.safetensors"
        )
        assert await reason(**wrong) is Reason.PORT_IN_USE
        listener.close()
        assert await reason(**wrong) is Reason.GPU_UNAVAILABLE
        del wrong["gpus"]
        assert await reason(**wrong) is Reason.DISK_FULL
        monkeypatch.setattr(disk_room, "MIN_FREE_BYTES", 0)
        assert await reason(**wrong) is Reason.GPU_MEMORY_TAKEN
        scene.gpus = FakeGpus((gpu("0"),))
        assert await reason(**wrong) is None
    finally:
        listener.close()


async def test_the_user_must_be_one(scene):
    refusal = await scene.preflight(scene.plan(user="nobody-of-this-name"))
    assert refusal is not None
    assert "there is no user" in refusal.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to be asked for")
async def test_root_must_be_asked_for(scene):
    refusal = await scene.preflight(scene.plan(user=None))
    assert refusal is not None
    assert refusal.reason is Reason.SPAWN_FAILED
    assert "managed.user" in refusal.detail


async def test_a_program_on_a_disk_that_hangs_is_named(scene, monkeypatch, hanging):
    monkeypatch.setattr(program, "may_execute", lambda path, user: hanging.wait())
    refusal = await scene.preflight(scene.plan(), Patience(SOON_SECONDS))
    text = f"{scene.program} gave no answer within {HUNG_SECONDS:g} s: "
    assert refusal is not None
    assert refusal.reason is Reason.SPAWN_FAILED
    assert refusal.detail.startswith(text)


async def test_a_cache_on_a_disk_that_hangs_is_named(scene, monkeypatch, hanging):
    monkeypatch.setattr(model_at_hand, "is_complete", lambda *_: hanging.wait())
    refusal = await scene.preflight(scene.plan(), Patience(SOON_SECONDS))
    assert refusal is not None
    assert refusal.reason is Reason.LOAD_STALLED
    assert refusal.detail.startswith(f"{scene.folder}/cache gave no answer")


async def test_a_log_folder_on_a_disk_that_hangs_is_named(scene, monkeypatch, hanging):
    monkeypatch.setattr(disk_room, "free_bytes_at", lambda _: hanging.wait())
    refusal = await scene.preflight(scene.plan(), Patience(SOON_SECONDS))
    assert refusal is not None
    assert refusal.detail.startswith(f"{scene.folder} gave no answer")


async def test_threads_that_hang_are_bounded(scene, monkeypatch, hanging):
    monkeypatch.setattr(program, "may_execute", lambda path, user: hanging.wait())
    impatient = Patience(0.001)
    for _ in range(MAX_HUNG_THREADS):
        with pytest.raises(HangsError):
            await ask(impatient, lambda _: hanging.wait(), "/nfs")
    refusal = await scene.preflight(scene.plan(), impatient)
    assert refusal is not None
    assert refusal.detail == f"{MAX_HUNG_THREADS} reads of processes hang"
    with pytest.raises(TooManyHung):
        await ask(impatient, str, "/nfs")


async def test_it_can_be_cancelled_while_a_disk_hangs(scene, monkeypatch, hanging):
    is_hanging = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object) -> bool:
        loop.call_soon_threadsafe(is_hanging.set)
        return bool(hanging.wait())

    monkeypatch.setattr(model_at_hand, "is_complete", hang)
    task = asyncio.create_task(scene.preflight(scene.plan()))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await is_hanging.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    "name",
    [
        "lacks_program",
        "model_at_hand",
        "lacks_port",
        "lacks_gpus",
        "lacks_disk",
        "lacks_gpu_memory",
    ],
)
async def test_it_can_be_cancelled_at_any_step(scene, monkeypatch, name):
    is_there = asyncio.Event()

    async def wait(*_: object) -> None:
        is_there.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(module, name, wait)
    task = asyncio.create_task(scene.preflight(scene.plan()))
    async with asyncio.timeout(DEADLINE_SECONDS):
        await is_there.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_event_loop_goes_on_meanwhile(scene, monkeypatch, hanging):
    monkeypatch.setattr(program, "may_execute", lambda path, user: hanging.wait() or True)
    task = asyncio.create_task(scene.preflight(scene.plan()))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    hanging.set()
    assert await task is None


async def test_what_a_question_raises_goes_to_who_asked():
    with some_patience() as own, pytest.raises(ZeroDivisionError):
        await ask(own, lambda _: 1 // 0, "/path")


def test_a_busy_disk_has_time_and_a_start_ends():
    assert 10.0 <= HUNG_SECONDS <= 60.0
