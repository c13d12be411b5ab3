"""The section `restart`: how many restarts are a crash loop, and when the agent restarts."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from vllm_agent.config.values import Duration, Section, between

# A limit that high never ends a loop, which is what the limit is for.
MAX_RESTARTS = 1_000
MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS = 1.0, 24 * 3_600.0
# A driver needs about a second to give the memory of a dead process back: sooner, the next launch
# would find it taken. Who wants an hour or more between two attempts restarts it by hand.
MIN_DELAY_SECONDS, MAX_DELAY_SECONDS = 2.0, 3_600.0

MANAGED_ONLY: Final = ("delay_seconds", "on_unhealthy", "dry_run")
"""Fields that say what the agent does to a server, and so are for those that it starts itself."""


class RestartConfig(Section):
    """How many restarts in how short a time are a crash loop, and when the agent restarts."""

    max_restarts: int = Field(
        3,
        strict=True,
        ge=1,
        le=MAX_RESTARTS,
        description=(
            f"Restarts after a crash, 1 to {MAX_RESTARTS:,}, before the restart limit counts as "
            "reached. A managed server is then left alone until somebody starts it."
        ),
    )
    window_seconds: Annotated[Duration, between(MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS)] = Field(
        60.0,
        alias="window",
        description="Uninterrupted time running, 1s to 1d, after which restarts are forgotten.",
    )
    delay_seconds: Annotated[Duration, between(MIN_DELAY_SECONDS, MAX_DELAY_SECONDS)] = Field(
        2.0,
        alias="delay",
        description=(
            "Managed servers only. Time from the end of a launch to the next, 2s to 1h; it grows "
            "with each restart in a row."
        ),
    )
    on_unhealthy: bool = Field(
        default=True,
        strict=True,
        description=(
            "Managed servers only. Restart it, too, when it lives and does not work. `false`: only "
            "when it ended."
        ),
    )
    dry_run: bool = Field(
        default=False,
        strict=True,
        description=(
            "Managed servers only. Log and count the restarts that would be made, and make none."
        ),
    )
