"""Processes, trees and ends of a local server as the host would report them, in one line each."""

from __future__ import annotations

import signal

from tests.lifecycle.looks import STARTED
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.observations import (
    Component,
    ComponentAtClose,
    ComponentRole,
    ProcessId,
    ProcessTree,
    Sighting,
    VllmCommand,
)

BOOT = "0a1b2c3d-0000-4000-8000-000000000000"
NEXT_BOOT = "ffffffff-0000-4000-8000-000000000000"


def process(number: int, boot_id: str = BOOT) -> ProcessId:
    """The main process of the launch that a story calls by that number."""
    return ProcessId(boot_id, 4000 + number, 100_000 * number)


def sighting(
    number: int = 1,
    *,
    start_seconds: float = STARTED,
    boot_id: str = BOOT,
    is_headless: bool = False,
) -> Sighting:
    return Sighting(
        process=process(number, boot_id),
        start_seconds=start_seconds,
        command=VllmCommand(model="tiny", is_headless=is_headless),
        uid=1000,
        session=4000 + number,
        url=None if is_headless else "http://127.0.0.1:8000",
    )


def tree(
    of: ProcessId, *, engines: int = 1, gone: int = 0, is_main_alive: bool = True
) -> ProcessTree:
    """A tree with so many EngineCores alive, and so many that have ended."""
    role = ComponentRole.ENGINE_CORE
    components = (
        Component(ComponentRole.API_SERVER, "", of.pid, is_main_alive),
        *(Component(role, f"dp{n}", of.pid + 10 + n, is_alive=True) for n in range(engines)),
        *(
            Component(role, f"dp{engines + n}", of.pid + 50 + n, is_alive=False)
            for n in range(gone)
        ),
    )
    return ProcessTree(process=of, is_main_alive=is_main_alive, components=components)


ASKED = EndingEvidence(asked="the agent stopped it")
"""Rule 1: the agent's own stop."""

TOLD_TO_STOP = EndingEvidence(stop_sign_seconds=1.0)
"""Rule 3: systemd or the log says so."""

ORDERLY = EndingEvidence(
    close_seconds=1.0,
    main_was_exiting_at_close=False,
    at_close=(
        ComponentAtClose(
            ComponentRole.ENGINE_CORE, is_gone=False, is_exiting=True, has_kill_pending=False
        ),
    ),
)
"""Rule 6: everything else was on its way out when the listener closed."""

KILLED = EndingEvidence(main_wait_status=signal.SIGKILL)
EXITED_1 = EndingEvidence(main_wait_status=1 << 8)
UNEXPLAINED = EndingEvidence()
