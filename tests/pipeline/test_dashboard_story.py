"""The dashboards tell the story: the right numbers, in the right places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dashboards.links import FLEET_UID, GPU_UID, SERVER_UID
from dashboards.states import STATE_STYLES
from tests.pipeline import story, story_blocks
from tests.pipeline.boards import BOARDS
from tests.pipeline.grafana import legend_text
from tests.pipeline.story_host import RESERVED_BYTES
from tests.pipeline.story_load import GIB
from tests.pipeline.views import SERVERS
from vllm_agent.lifecycle.states import ServerState
from vllm_agent.observations import Stage

if TYPE_CHECKING:
    from tests.pipeline.grafana import Viewer

pytestmark = pytest.mark.needs("promtool", "prometheus")

CODE = {style.state: style.code for style in STATE_STYLES}
GPU1, GPU2 = "gpu1:10060", "gpu2:10060"


def _scraped(at: int) -> int:
    """When that was scraped which a graph shows at a step."""
    return at - story.LAG_SECONDS


def _over_time(viewer: Viewer, panel_id: int, ref_id: str = "A") -> dict[str, dict[int, float]]:
    """Legend → value by unix time, of one query of a panel."""
    panel = viewer.board.panels[panel_id]
    (target,) = (one for one in panel["targets"] if one["refId"] == ref_id)
    return {
        legend_text(target["legendFormat"], one["metric"]): {
            int(at): float(value) for at, value in one["values"]
        }
        for one in viewer.ask(target, panel)
    }


def _number(viewer: Viewer, panel_id: int, ref_id: str = "A") -> float:
    """What a panel with one number shows."""
    panel = viewer.board.panels[panel_id]
    (target,) = (one for one in panel["targets"] if one["refId"] == ref_id)
    (series,) = viewer.ask(target, panel)
    ((_, value),) = series["values"]
    return float(value)


def _rows(viewer: Viewer, panel_id: int) -> dict[tuple[str, ...], dict[str, Any]]:
    """The rows of a table by server and instance, or by GPU and instance."""
    rows = viewer.rows(viewer.board.panels[panel_id])
    by: dict[tuple[str, ...], dict[str, Any]] = {
        (row.get("Server", row.get("GPU", "")), row["Instance"]): row for row in rows
    }
    assert len(by) == len(rows)
    return by


@pytest.mark.parametrize(
    ("panel_id", "ref_id", "shown"),
    [
        (1, "A", 3),  # llama, mistral and remote; embed runs, too, and nobody asked for it
        (1, "B", 7),  # all but gemma, which is in maintenance, and embed
        (2, "A", 2),  # phi and partner
        (3, "A", 6),  # llama twice, phi three times, qwen once
        (4, "A", 1),  # phi
        (6, "A", 1),  # lab, and not the dead target of a job without agents
    ],
)
def test_number_of_the_fleet(looking, panel_id, ref_id, shown):
    assert _number(looking(FLEET_UID), panel_id, ref_id) == shown


LOST_SECONDS = {
    "llama": story.LLAMA_SERVES_AT - story.LLAMA_CRASHED_AT,
    "phi": story_blocks.END - story.PHI_CRASHED_AT,
    "partner": story_blocks.END - story.PARTNER_LOST_AT - 30,  # three checks fail first
    "planned": story_blocks.END - story_blocks.START,
    "remote": 0,
    "gemma": 0,
}
"""How long servers were wanted and did not run."""


def test_availability_of_each_server(looking):
    rows = _rows(looking(FLEET_UID), 24)
    assert {server for server, _ in rows} == set(SERVERS) - {"embed@8001"}
    for (server, _), row in rows.items():
        if server in LOST_SECONDS:
            assert row["Not running"] == pytest.approx(LOST_SECONDS[server], abs=30), server
    assert rows["llama", GPU1]["Availability"] == pytest.approx(
        1 - LOST_SECONDS["llama"] / 7200, abs=0.005
    )
    # What an operator stopped on purpose is not lost.
    assert rows["gemma", GPU1]["Availability"] == 1


def test_availability_of_the_fleet_weighs_by_time(looking):
    viewer = looking(FLEET_UID)
    rows = _rows(viewer, 24).values()
    lost = sum(row["Not running"] for row in rows)
    desired = sum(
        row["Not running"] / (1 - row["Availability"]) if row["Not running"] else 0 for row in rows
    )
    # remote was up all the time, gemma until its maintenance.
    desired += 7200 + 95 * 60
    assert _number(viewer, 5) == pytest.approx(1 - lost / desired, abs=0.005)


@pytest.mark.parametrize(("uid", "panel_id"), [(FLEET_UID, 10), (SERVER_UID, 10)])
def test_timeline_shows_every_state(looking, uid, panel_id):
    rows = _over_time(looking(uid), panel_id)
    assert {row.partition(" ")[0] for row in rows} == set(SERVERS)
    llama = rows[f"llama ({GPU1})"]
    assert len(llama) == len(story.SCRAPES)

    def at(minute: float) -> float:
        return llama[story.at(minute)]

    assert at(59) == CODE[ServerState.RUNNING]
    assert at(61.5) == CODE[ServerState.CRASHED]
    assert at(75) == CODE[ServerState.STARTING]
    assert at(79) == CODE[ServerState.RUNNING]
    assert rows[f"phi ({GPU1})"][story_blocks.END] == CODE[ServerState.FAILED]
    assert rows[f"gemma ({GPU1})"][story_blocks.END] == CODE[ServerState.STOPPED]
    # While its agent is down nobody knows.
    assert not any(_scraped(at) in story.AGENT_AWAY for at in rows[f"mistral ({GPU2})"])


def test_server_table_tells_state_and_reason(looking):
    rows = _rows(looking(FLEET_UID), 11)
    assert {server for server, _ in rows} == set(SERVERS)
    phi = rows["phi", GPU1]
    assert (phi["State"], phi["Reason"], phi["Mode"]) == ("failed", "gpu_oom", "managed")
    llama = rows["llama", GPU1]
    assert (llama["State"], llama["Model"]) == ("running", story.LLAMA.name)
    assert "Reason" not in llama
    assert llama["Since"] == story.LLAMA_SERVES_AT * 1000
    assert "Model" not in rows["planned", "edge:10060"]
    partner = rows["partner", "edge:10060"]
    assert (partner["State"], partner["Reason"]) == ("failed", "unreachable")


def test_load_in_progress_is_one_row(looking):
    (row,) = _rows(looking(FLEET_UID), 12).values()
    assert (row["Server"], row["Stage"]) == ("qwen", "load_weights")
    share = row["In this stage for"] / story.QWEN_LOADS_WEIGHTS_SECONDS
    assert row["Done"] == pytest.approx(share, abs=0.1)
    assert row["Starting since"] < row["Last moved"] <= story_blocks.END * 1000
    assert row["Stalled"] == 0


def test_graphs_count_every_event_once(looking):
    crashes = _over_time(looking(FLEET_UID), 20)
    assert {reason: sum(bars.values()) for reason, bars in crashes.items()} == {
        "engine_died": 1,
        "gpu_memory_taken": 1,
        "gpu_oom": 4,
        "gpu_fault": 1,
    }
    restarts = _over_time(looking(FLEET_UID), 21)
    assert {who: sum(bars.values()) for who, bars in restarts.items()} == {
        "llama (gpu1:10060) by outside": 2,
        "mistral (gpu2:10060) by outside": 2,
        "phi (gpu1:10060) by agent": 3,
        "qwen (gpu1:10060) by operator": 2,
    }
    of_llama = _over_time(looking(SERVER_UID, "a server"), 40)
    assert {name.partition(":")[0] for name in of_llama} == {
        "crash engine_died",
        "crash gpu_memory_taken",
    }


def test_last_crash_is_when_it_happened(looking):
    rows = looking(FLEET_UID).rows(BOARDS[FLEET_UID].panels[22])
    crashed = {(row["Server"], row["Reason"]): row["Crashed"] / 1000 for row in rows}
    # Settled a second later.
    assert crashed["llama", "engine_died"] == story.LLAMA_CRASHED_AT + 1
    assert crashed["mistral", "gpu_fault"] == story.XID_AT + 3


def test_agents_tell_of_themselves(looking):
    viewer = looking(FLEET_UID)
    collectors = _over_time(viewer, 30)
    for at, value in collectors[f"gpu ({GPU1})"].items():
        assert value == (_scraped(at) not in story.GPU_BLIND)
    assert "gpu (edge:10060)" not in collectors
    rows = {row["Instance"]: row for row in viewer.rows(BOARDS[FLEET_UID].panels[31])}
    assert set(rows) == set(story.INSTANCES)
    assert rows[GPU1]["Last accepted"] == story.BAD_CONFIGURATION.end * 1000
    assert rows[GPU2]["Last accepted"] == story.AGENT_AWAY.end * 1000
    assert rows[GPU1]["Left out since start"] == 3


def test_stages_are_a_waterfall(looking):
    """Each stage begins where the one before ends, and lasts as long as it did."""
    viewer = looking(SERVER_UID, "one of each")
    rows: dict[str, list[int]] = {}
    for ref_id in "ABCDE":
        for name, values in _over_time(viewer, 20, ref_id).items():
            rows[name.partition(":")[0]] = [at for at in values if at < story.at(100)]
    begin = story.QWEN_ASKED_AT
    for stage, length in story.QWEN_STAGES:
        assert len(rows[stage]) * story_blocks.STEP_SECONDS == pytest.approx(length, abs=45)
        assert rows[stage][0] == pytest.approx(begin, abs=45)
        begin += length


def test_seconds_of_the_newest_start(looking):
    rows = _rows(looking(SERVER_UID), 21)
    assert set(rows) == {("llama", GPU1), ("qwen", GPU1), ("phi", GPU1), ("mistral", GPU2)}
    llama, stages = rows["llama", GPU1], dict(story.LLAMA_STAGES)
    assert llama["Init"] == stages[Stage.INIT]
    assert llama["Load weights"] == stages[Stage.LOAD_WEIGHTS]
    assert llama["Compile"] == stages[Stage.COMPILE]
    assert llama["Warm-up"] == stages[Stage.WARMUP]
    assert llama["Together"] == llama["Mean of all loads"] == sum(stages.values())
    assert "Download" not in llama
    assert rows["qwen", GPU1]["Stalled"] == 0


def test_progress_reaches_its_end(looking):
    viewer = looking(SERVER_UID, "one of each")
    (downloaded,) = _over_time(viewer, 22, "B").values()
    (size,) = _over_time(viewer, 22, "C").values()
    assert set(size.values()) == {story.QWEN.weights_bytes}
    assert list(downloaded.values()) == sorted(downloaded.values())
    assert max(downloaded.values()) > 0.95 * story.QWEN.weights_bytes
    shares = _over_time(viewer, 22, "A")
    assert {name.partition(":")[0] for name in shares} == {"download", "load_weights"}


def test_a_hanging_load_shows(looking):
    quiet = _over_time(looking(SERVER_UID, "an instance"), 23)[f"mistral ({GPU2})"]
    assert max(quiet.values()) > 300


def test_probes_are_drawn(looking):
    viewer = looking(SERVER_UID, "a server by URL")
    failures = _over_time(viewer, 30)
    assert {name.partition(":")[0] for name in failures} == {"health timeout"}
    (mean,) = _over_time(viewer, 31, "A").values()
    (slow,) = _over_time(viewer, 31, "B").values()
    assert 0.01 < mean[story.at(30)] <= slow[story.at(30)] <= 0.1
    assert max(slow.values()) > 1  # while it was busy


def test_restart_budget_runs_out(looking):
    viewer = looking(SERVER_UID)
    left = _over_time(viewer, 41, "A")[f"left: phi ({GPU1})"]
    assert (left[story.at(79)], left[story_blocks.END]) == (3, 0)
    (reached,) = _over_time(viewer, 41, "C")
    assert "phi" in reached


def test_memory_of_the_gpus_adds_up(looking):
    """Servers, orphans, other and free are all there is, but for what the driver reserves."""
    viewer = looking(GPU_UID, "an instance")
    held = [_over_time(viewer, 10, ref_id) for ref_id in "ABCD"]
    (total,) = _over_time(viewer, 10, "E").values()
    for at, size in total.items():
        parts = sum(one.get(at, 0) for query in held for one in query.values())
        assert parts + 4 * RESERVED_BYTES == size == 4 * 45 * GIB


def test_orphans_hold_memory_until_somebody_ends_them(looking):
    orphans = _over_time(looking(GPU_UID), 11)
    names = {f"memory: GPU 2 ({GPU1})", f"memory: GPU 3 ({GPU1})"}
    assert set(orphans) == names
    for values in orphans.values():
        assert 0 <= _scraped(min(values)) - story.LLAMA_CRASHED_AT < story_blocks.STEP_SECONDS
        assert 0 < story.ORPHANS_LEFT_AT - _scraped(max(values)) <= story_blocks.STEP_SECONDS
        assert set(values.values()) == {story.LLAMA_GPU_BYTES}


def test_devices_are_counted(looking):
    viewer = looking(GPU_UID)
    assert _number(viewer, 1) == 12
    assert _number(viewer, 3) == 0
    assert _number(viewer, 5) == 2
    rows = _rows(viewer, 12)
    assert len(rows) == 12
    assert rows["1", GPU2]["Name"] == "NVIDIA L40S"
    assert rows["3", GPU1]["Memory in use"] == pytest.approx(
        story.LLAMA_GPU_BYTES / (80 * GIB), abs=0.01
    )


def test_who_is_on_which_gpu(looking):
    rows = looking(GPU_UID).rows(BOARDS[GPU_UID].panels[50])
    assert {(row["Server"], row["GPU"]) for row in rows} == {
        *(("llama", gpu) for gpu in "0123"),
        *(("qwen", gpu) for gpu in "45"),
        *(("mistral", gpu) for gpu in "01"),
        ("embed@8001", "2"),
    }
    for row in rows:
        total = 80 * GIB if row["Instance"] == GPU1 else 45 * GIB
        assert row["Share of the GPU"] == pytest.approx(row["Memory"] / total)


def test_xids_are_listed(looking):
    rows = looking(GPU_UID).rows(BOARDS[GPU_UID].panels[40])
    assert {(row["GPU"], row["Instance"]) for row in rows} == {("1", GPU2)}
    assert {row["XID"]: row["Since the agent started"] for row in rows} == {"45": 2, "48": 1}
    (last,) = (row["Last"] for row in rows if row["XID"] == "48")
    assert last == story.XID_AT * 1000
