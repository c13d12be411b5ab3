"""The words that keys of the configuration choose from, for who acts on them."""

from __future__ import annotations

from enum import StrEnum


class DiscoveryPage(StrEnum):
    """Which servers that discovery found are wanted up, so that somebody is paged for them."""

    SUPERVISED = "supervised"
    ALL = "all"


class GpuUse(StrEnum):
    """Whether a driver is asked, and whether it may be missing."""

    AUTO = "auto"
    OFF = "off"
    REQUIRED = "required"
