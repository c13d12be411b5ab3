"""The clocks of this host; everything else is given the time."""

from __future__ import annotations

import time

from vllm_agent.observations import Instant


def now() -> Instant:
    """The present moment on both clocks."""
    return Instant(time.monotonic(), time.time())
