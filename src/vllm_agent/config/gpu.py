"""The section `gpu`: which drivers are asked who holds the memory of the GPUs, and how often."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from vllm_agent.config.choices import GpuUse
from vllm_agent.config.problem import shown
from vllm_agent.config.values import (
    Duration,
    Section,
    between,
    ends_within_interval,
    fail,
    interval_or,
)

# Below a second a look costs more than it tells: memory is taken in steps that last seconds.
# Prometheus shows a value for 5 minutes after it was scraped; an older one is nobody's present.
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 1.0, 300.0
# A driver under load answers in tens of milliseconds: less would call it hung when it is busy. To
# wake GPUs without persistence mode takes it seconds each; one that needs more than 30 hangs.
MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 0.1, 30.0
DEFAULT_TIMEOUT_SECONDS = 2.0


def _use(value: Any) -> GpuUse:
    # YAML 1.1 reads a bare `off` as false: so does what writes this file from a template.
    if value is False:
        return GpuUse.OFF
    try:
        return GpuUse(value)
    except ValueError:
        fail(
            f"must be auto, off or required, got {shown(value)}: auto asks the driver where there "
            "is one, required also reports where there is none"
        )


class GpuConfig(Section):
    """Who is asked about the GPUs of this host."""

    nvml: Annotated[GpuUse, BeforeValidator(_use)] = Field(
        GpuUse.AUTO,
        description=(
            "NVIDIA's GPUs, through the library of their driver. `auto`: where there is one; "
            "`required`: its absence is reported as a fault of the agent; `off`: never."
        ),
    )
    amdgpu: Annotated[GpuUse, BeforeValidator(_use)] = Field(
        GpuUse.AUTO, description="AMD's GPUs, through /sys and /proc. Values as for `nvml`."
    )
    demo: bool = Field(
        default=False,
        strict=True,
        description=(
            "Synthetic GPUs instead of real ones, for demonstrations: `nvml` and `amdgpu` are not "
            "asked."
        ),
    )
    interval_seconds: Annotated[Duration, between(MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS)] = (
        Field(
            5.0,
            alias="interval",
            description=(
                "Time from one look at the GPUs to the next, 1s to 5m. The end of a server on this "
                "host makes one at once."
            ),
        )
    )
    timeout_seconds: Annotated[
        Duration, between(MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS), ends_within_interval("a look")
    ] = Field(
        default_factory=interval_or(DEFAULT_TIMEOUT_SECONDS),
        alias="timeout",
        description=(
            "Longest wait for a driver before it counts as hung, 100ms to 30s and at most "
            "`interval`. Default: 2s, or `interval` where that is shorter."
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _is_switched_off_by_driver(cls, value: Any) -> Any:
        if value is False or value == GpuUse.OFF:
            fail(
                f"must be a mapping of keys, got {shown(value)}: to ask no driver, write "
                "gpu: {nvml: off, amdgpu: off}"
            )
        return value

    @field_validator("demo")
    @classmethod
    def _demo_requires_no_driver(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - a validator is handed the value
        if value and GpuUse.REQUIRED in (info.data.get("nvml"), info.data.get("amdgpu")):
            fail("goes without a required driver: write demo: false, or nvml and amdgpu without it")
        return value
