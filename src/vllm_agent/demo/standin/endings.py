"""The recorded ways to end a server, as actions that it can do to itself."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Target(StrEnum):
    """Who receives the signal of an ending."""

    MAIN = "main"
    GROUP = "group"
    ENGINE = "engine"
    WORKER = "worker"
    API_SERVER = "api_server"


@dataclass(frozen=True, slots=True)
class Ending:
    """One signal for one target, and the command line that the recording needed."""

    signum: signal.Signals
    target: Target
    arguments: tuple[str, ...] = ()


_TWO_API_SERVERS: Final = ("--api-server-count", "2")

# The names of the recording, less its suffixes -idle and -streams.
ENDINGS: Final = MappingProxyType(
    {
        "term": Ending(signal.SIGTERM, Target.MAIN),
        "term_group": Ending(signal.SIGTERM, Target.GROUP),
        "term_shutdown_timeout_10": Ending(
            signal.SIGTERM, Target.MAIN, ("--shutdown-timeout", "10")
        ),
        "int": Ending(signal.SIGINT, Target.MAIN),
        "int_group": Ending(signal.SIGINT, Target.GROUP),
        "kill_engine": Ending(signal.SIGKILL, Target.ENGINE),
        "kill_worker": Ending(signal.SIGKILL, Target.WORKER),
        "segv_worker": Ending(signal.SIGSEGV, Target.WORKER),
        "kill_api": Ending(signal.SIGKILL, Target.MAIN),
        "kill_group": Ending(signal.SIGKILL, Target.GROUP),
        "api2_term": Ending(signal.SIGTERM, Target.MAIN, _TWO_API_SERVERS),
        "api2_kill_child": Ending(signal.SIGKILL, Target.API_SERVER, _TWO_API_SERVERS),
        "api2_kill_engine": Ending(signal.SIGKILL, Target.ENGINE, _TWO_API_SERVERS),
    }
)
