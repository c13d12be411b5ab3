"""What happens to the servers of the stage, and how it is mended.

Each incident is a generator: it runs up to its `yield`, then all that is expected of its alerts has
come, and the rest mends it. What happens is timed by what was seen, never by a clock.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final

from tests.pipeline.stage import PATIENCE_SECONDS
from vllm_agent.demo.launch import kill_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pipeline.stage import Scene
    from vllm_agent.demo.launch import StandIn

LONGER_THAN_ANY_WAIT: Final = 2
"""A server that nobody is told about stays down this many times as long as an alert would wait."""

ORPHANS_LIVE: Final = ("--orphan-lifetime", "600")
"""Until they are killed, as those of a real vLLM."""

HARDWARE_XID: Final = 79
"""The GPU has fallen off the bus."""

PROGRAM_XID: Final = 31
"""A program read where it may not."""

FAILURES_LEFT: Final = "failures-left"
"""A file in the folder of the stage: how many more launches of the looping server shall end."""

HANGS_LEFT: Final = "hangs-left"
"""The same of the hanging server: how many more launches shall hang."""


def crash(scene: Scene) -> Iterator[None]:
    """Its engine is killed; it stays down until somebody starts it."""
    server = scene.start_serving()
    kill_engine(server)
    yield
    scene.start_serving()


def crash_between_scrapes(scene: Scene) -> Iterator[None]:
    """It crashes right after a scrape, and the next scrape finds it running again."""
    server = scene.start_serving()
    killed_at = time.time()
    kill_engine(server)
    scene.start().wait_serving(PATIENCE_SECONDS)
    yield
    state = scene.series("vllm_agent_server_state", state="running")
    [seen] = scene.stage.prometheus.query(f"{state}[{PATIENCE_SECONDS:g}s]")
    after = [value for at, value in seen["values"] if at > killed_at]
    assert after, "it was not scraped since it crashed"
    assert set(after) == {"1"}, "it was seen down: the machine is too busy for this test"


def crash_loop(scene: Scene) -> Iterator[None]:
    """It crashes again as soon as it was restarted, until the agent leaves it down."""
    scene.wait_seen("running")
    (scene.stage.folder / FAILURES_LEFT).write_text("1")
    scene.managed.kill_part(scene.server)
    yield
    scene.managed.done(scene.server, "start")


def load_without_progress(scene: Scene) -> Iterator[None]:
    """Its load hangs before it ever served."""
    server = scene.start(
        *("--load-seconds", "2", "--hang-load", "load_weights", "--no-ignore-sigterm-while-loading")
    )
    yield
    stop(server)
    scene.start_serving()


def hang_mended_by_the_agent(scene: Scene) -> Iterator[None]:
    """An operator restarts it, its load hangs, and the agent starts it once more."""
    scene.wait_seen("running")
    (scene.stage.folder / HANGS_LEFT).write_text("1")
    scene.managed.ask(scene.server, "restart")
    scene.wait_true(f"{scene.series('vllm_agent_server_restarts_total', initiator='agent')} > 0")
    scene.wait_seen("running")
    yield


def slow_start(scene: Scene) -> Iterator[None]:
    """A start takes many times as long as the one before, and no end is in sight."""
    server = scene.start_serving("--load-seconds", "1")
    stop(server)
    scene.wait_seen("stopped")
    server = scene.start("--hang-load", "warmup", "--no-ignore-sigterm-while-loading")
    yield
    stop(server)
    scene.start_serving()


def orphans(scene: Scene) -> Iterator[None]:
    """Its main process is killed, and leaves the others behind; there is no GPU."""
    server = scene.start_serving(*ORPHANS_LIVE)
    server.kill()
    yield
    kill_all(server.pids())
    scene.start_serving()


def orphans_on_gpu(scene: Scene) -> Iterator[None]:
    """The same, and what it leaves behind holds memory of a GPU."""
    server = scene.start_serving(*ORPHANS_LIVE)
    scene.show_gpu(*server.worker_pids)
    scene.wait_true(f"{scene.series('vllm_agent_server_gpu_memory_used_bytes')} > 0")
    server.kill()
    yield
    kill_all(server.pids())
    scene.show_gpu()
    scene.start_serving()


def faults_of_gpu(scene: Scene) -> Iterator[None]:
    """A program errs on a GPU, then that falls off the bus, and the server on it crashes."""
    server = scene.start_serving()
    scene.show_gpu(*server.worker_pids)
    scene.wait_true(f"{scene.series('vllm_agent_server_gpu_memory_used_bytes')} > 0")
    scene.driver.fault(0, PROGRAM_XID, HARDWARE_XID)
    scene.wait_paged(f"VllmGpuXid ({HARDWARE_XID})")
    kill_engine(server)
    yield
    scene.show_gpu()
    scene.start_serving()


def agent_killed(scene: Scene) -> Iterator[None]:
    """A server is down and its page is out; then the agent is killed, too."""
    other = scene.of("beside")
    other.start_serving()
    server = scene.start_serving()
    kill_engine(server)
    scene.wait_paged("VllmServerCrashed (engine_died)")
    process = scene.agent.process
    assert process is not None
    process.kill()
    process.wait()
    yield
    scene.agent.start()
    other.wait_seen("running")
    scene.start_serving()


def external_gone(scene: Scene) -> Iterator[None]:
    """A server that is known by its URL only is there no more."""
    server = scene.start_serving()
    os.killpg(server.pid, signal.SIGKILL)
    yield
    scene.start_serving()


def never_started(scene: Scene) -> Iterator[None]:
    """A server that is configured was not started yet."""
    yield
    scene.start_serving()


def unresponsive(scene: Scene) -> Iterator[None]:
    """It is there and answers nothing."""
    server = scene.start_serving()
    server.signal(signal.SIGSTOP)
    yield
    server.signal(signal.SIGCONT)


def agent_in_trouble(scene: Scene) -> Iterator[None]:
    """Its disk cannot be written, its GPU driver hangs, and it gets a wrong configuration."""
    agent = scene.agent
    assert agent.process is not None
    good = agent.config_path.read_text()
    scene.driver.hang()
    agent.config_path.write_text("servers: everything\n")
    agent.process.send_signal(signal.SIGHUP)
    yield
    scene.driver.recover()
    agent.config_path.write_text(good)
    agent.stop()
    agent.state_dir.unlink()
    agent.start()


def stop_by_owner(scene: Scene) -> Iterator[None]:
    """Whoever runs it sends it SIGTERM."""
    server = scene.start_serving()
    stop(server)
    wait_down(scene)
    yield


def stop_by_operator(scene: Scene) -> Iterator[None]:
    """`vllm-agent stop`."""
    scene.wait_seen("running")
    scene.managed.done(scene.server, "stop")
    wait_down(scene)
    yield
    scene.managed.done(scene.server, "start")


def crash_in_maintenance(scene: Scene) -> Iterator[None]:
    """Somebody works on it, and it is left alone."""
    scene.wait_seen("running")
    scene.managed.done(scene.server, "maintenance", on=True)
    scene.managed.kill_part(scene.server)
    wait_down(scene)
    yield
    scene.managed.done(scene.server, "maintenance", on=False)
    scene.wait_seen("running")


def wait_down(scene: Scene) -> None:
    """Waits until the server was stopped for longer than any alert waits."""
    entered = scene.series("vllm_agent_server_state_entered_timestamp_seconds")
    down = scene.series("vllm_agent_server_state", state="stopped")
    timing = scene.stage.timing
    waits = (timing.down_for_seconds, timing.leftover_for_seconds, timing.fault_for_seconds)
    seconds = LONGER_THAN_ANY_WAIT * max(waits)
    same = "on (instance, server)"
    scene.wait_true(f"time() - {entered} > {seconds:g} and {same} {down} == 1")


def kill_engine(server: StandIn) -> None:
    """Ends the heart of a server, and waits until the rest of it has followed."""
    kill_all(server.engine_pids)
    server.wait(PATIENCE_SECONDS)


def stop(server: StandIn) -> None:
    """Stops a server as whoever started it does."""
    server.terminate()
    server.wait(PATIENCE_SECONDS)
