"""The section `start`: how long the start of a server may go without progress."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vllm_agent.config.values import Duration, Section, between

# A load is looked at once a second: in less, none can have moved. Beyond a day nobody waits for a
# verdict, and a limit that is never reached is a load that hangs for ever.
MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 1.0, 24 * 3_600.0


class StartConfig(Section):
    """How long a start may go without progress before it counts as stalled.

    These limit silence, never the whole time that a start takes.
    """

    start_timeout_seconds: Annotated[
        Duration, between(MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS)
    ] = Field(
        120.0,
        alias="start_timeout",
        description=(
            "Longest time without progress, 1s to 1d, before its first EngineCore process is "
            "there or a download has begun. `load_timeout` where that is shorter."
        ),
    )
    load_timeout_seconds: Annotated[Duration, between(MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS)] = (
        Field(
            300.0,
            alias="load_timeout",
            description=(
                "Longest time without progress, 1s to 1d, from then until it serves. CPU time "
                "alone extends init, compile and warmup, to 30 minutes or three times the longest "
                "that this server took for it."
            ),
        )
    )
