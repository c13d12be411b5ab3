"""How long each step of a real vLLM 0.32.0 took, and the one place that scales it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

# Below this the scheduler, not the delay, decides what happens first.
_SHORTEST_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Timing:
    """Delays in seconds, read off 26 recorded endings of a CPU build on two cores."""

    notice: float = 0.015  # signal to /health 503
    close_after_notice: float = 0.012  # then the listener and idle connections close
    kill_workers: float = 0.012  # after the kill of the engine
    api_server_exit: float = 0.36  # listener closed to exit of the API server
    stop_engine: float = 0.16  # listener closed to SIGTERM for a failed engine
    stream_error: float = 0.06  # a stream told of the engine's death to the closing listener
    watchdog: float = 5.0  # vLLM looks for a dead engine this often
    worker_teardown: float = 2.8
    engine_teardown: float = 2.5
    core_dump: float = 3.2  # SIGSEGV to the exit of a worker
    api_server_grace: float = 5.0  # SIGTERM to SIGKILL among several API servers
    frontend_close: float = 0.07  # SIGTERM to the closing listener among several API servers
    frontend_stop: float = 0.058  # SIGTERM of the main process to that of its API servers
    frontend_kill: float = 0.012  # SIGTERM to SIGKILL in a stop of several API servers
    main_cleanup: float = 0.43  # last component gone to the closed socket, several API servers
    main_exit: float = 1.6  # closed socket to the exit of the main process, several API servers
    keep_alive: float = 5.0  # uvicorn's default
    interrupt_load: float = 5.0  # SIGINT while loading to exit 1; up to 18 s were seen
    drip: float = 1.0  # between two bytes of a slow answer
    silent_worker: float = 60.0  # EngineCore waits so long for a worker before it logs a line

    def divided_by(self, speed: float) -> Timing:
        """All delays, `speed` times shorter."""
        scaled = {
            field.name: max(getattr(self, field.name) / speed, _SHORTEST_SECONDS)
            for field in dataclasses.fields(self)
        }
        return Timing(**scaled)
