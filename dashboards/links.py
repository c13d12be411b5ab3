"""Where alerts and dashboards lead: the uids, and the panels that something links to.

A uid or a number never changes once it was shipped: bookmarks, pages and runbooks lead there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FLEET_UID: Final = "vllm-agent-fleet"
SERVER_UID: Final = "vllm-agent-server"
GPU_UID: Final = "vllm-agent-gpu"


@dataclass(frozen=True, slots=True)
class PanelLink:
    """One panel of one dashboard."""

    uid: str
    panel_id: int


FLEET_AGENTS_DOWN: Final = PanelLink(FLEET_UID, 6)
FLEET_TIMELINE: Final = PanelLink(FLEET_UID, 10)
FLEET_SERVERS: Final = PanelLink(FLEET_UID, 11)
FLEET_LOADS: Final = PanelLink(FLEET_UID, 12)
FLEET_AVAILABILITY: Final = PanelLink(FLEET_UID, 24)
FLEET_COLLECTORS: Final = PanelLink(FLEET_UID, 30)
FLEET_CONFIGURATION: Final = PanelLink(FLEET_UID, 31)

SERVER_TIMELINE: Final = PanelLink(SERVER_UID, 10)
SERVER_STAGES: Final = PanelLink(SERVER_UID, 20)
SERVER_STAGE_SECONDS: Final = PanelLink(SERVER_UID, 21)
SERVER_PROGRESS: Final = PanelLink(SERVER_UID, 22)
SERVER_PROBES: Final = PanelLink(SERVER_UID, 30)
SERVER_PROBE_LATENCY: Final = PanelLink(SERVER_UID, 31)
SERVER_ENDINGS: Final = PanelLink(SERVER_UID, 40)
SERVER_RESTART_BUDGET: Final = PanelLink(SERVER_UID, 41)
SERVER_AVAILABILITY: Final = PanelLink(SERVER_UID, 42)
SERVER_GPUS: Final = PanelLink(SERVER_UID, 50)
SERVER_PROCESSES: Final = PanelLink(SERVER_UID, 51)

GPU_HOLDERS: Final = PanelLink(GPU_UID, 10)
GPU_ORPHANS: Final = PanelLink(GPU_UID, 11)
GPU_UTILIZATION: Final = PanelLink(GPU_UID, 20)
GPU_TEMPERATURE: Final = PanelLink(GPU_UID, 21)
GPU_POWER: Final = PanelLink(GPU_UID, 30)
GPU_XIDS: Final = PanelLink(GPU_UID, 40)
GPU_ECC: Final = PanelLink(GPU_UID, 41)
GPU_SERVERS: Final = PanelLink(GPU_UID, 50)
