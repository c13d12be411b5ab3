"""The part of the Server dashboard on starts: stages, seconds, progress."""

from __future__ import annotations

from dashboards import links
from dashboards.board import SERVER_NAME
from dashboards.panels import (
    Area,
    Column,
    Json,
    Panel,
    dashed,
    instant_table,
    of_query,
    over_time,
    row,
    state_timeline,
    table,
    timeseries,
    value_of,
    words,
)
from dashboards.queries import metric
from dashboards.states import STAGE_STYLES, stage_codes, stage_query


def panels() -> list[Json]:
    """The heading and the panels below it."""
    return [
        row(100, "Starts", 17),
        _stages(),
        _stage_seconds(),
        _progress(),
        _since_progress(),
    ]


def _stages() -> Json:
    panel = Panel(
        links.SERVER_STAGES.panel_id,
        "Stages of each start",
        "A row per stage, coloured while the server is in it (`vllm_agent_load_stage`). "
        "A stage shorter than a scrape interval may be missing here; the table has its seconds.",
        Area(0, 18, 24, 8),
        "none",
        "No starts in this range",
        mappings=stage_codes(),
    )
    targets = [
        over_time(ref_id, stage_query(style), f"{{{{stage}}}}: {SERVER_NAME}")
        for ref_id, style in zip("ABCDE", STAGE_STYLES, strict=True)
    ]
    return state_timeline(panel, targets)


def _stage_seconds() -> Json:
    panel = Panel(
        links.SERVER_STAGE_SECONDS.panel_id,
        "Seconds of the newest start",
        "How long the newest launch was in each stage (`vllm_agent_load_stage_seconds`), beside "
        "what a load of this server takes on average (`vllm_agent_load_duration_seconds_sum` by "
        "`vllm_agent_load_duration_seconds_count`), and whether it has shown no progress for "
        "longer than it may (`vllm_agent_load_stalled`, only while it loads).",
        Area(0, 26, 24, 6),
        "s",
        "No starts seen",
    )
    by = "by (job, instance, server)"
    targets = [
        instant_table(ref_id, f"sum {by} ({metric('load_stage_seconds', stage=style.stage)})")
        for ref_id, style in zip("ABCDE", STAGE_STYLES, strict=True)
    ]
    loads = metric("load_duration_seconds_sum"), metric("load_duration_seconds_count")
    targets += [
        instant_table("F", f"sum {by} ({metric('load_stage_seconds')})"),
        instant_table("G", " / ".join(loads)),
        instant_table("H", metric("load_stalled")),
    ]
    columns = [
        Column("server", "Server"),
        Column("instance", "Instance"),
        *(
            Column(value_of(ref_id), style.title)
            for ref_id, style in zip("ABCDE", STAGE_STYLES, strict=True)
        ),
        Column(value_of("F"), "Together"),
        Column(value_of("G"), "Mean of all loads"),
        Column(
            value_of("H"),
            "Stalled",
            unit="none",
            mappings=words((0, "no", "green"), (1, "yes", "red")),
        ),
    ]
    return table(panel, targets, columns, sorted_by="Server")


def _progress() -> Json:
    on_the_right = {"unit": "bytes", "custom__axisPlacement": "right"}
    panel = Panel(
        links.SERVER_PROGRESS.panel_id,
        "Progress",
        "How much of the download or of the weights is done (`vllm_agent_load_progress_ratio`), "
        "and on the right the bytes: `vllm_agent_load_download_bytes` of "
        "`vllm_agent_load_download_size_bytes`, `vllm_agent_load_weights_bytes` of "
        "`vllm_agent_load_weights_size_bytes` (dashed).",
        Area(0, 32, 12, 9),
        "percentunit",
        "No starts in this range",
        overrides=[
            of_query("A", max=1),
            of_query("B", **on_the_right),
            dashed("C", **on_the_right),
            of_query("D", **on_the_right),
            dashed("E", **on_the_right),
        ],
    )
    targets = [
        over_time("A", metric("load_progress_ratio"), f"{{{{stage}}}}: {SERVER_NAME}"),
        over_time("B", metric("load_download_bytes"), f"downloaded: {SERVER_NAME}"),
        over_time("C", metric("load_download_size_bytes"), f"to download: {SERVER_NAME}"),
        over_time("D", metric("load_weights_bytes"), f"weights loaded: {SERVER_NAME}"),
        over_time("E", metric("load_weights_size_bytes"), f"weights to load: {SERVER_NAME}"),
    ]
    return timeseries(panel, targets)


def _since_progress() -> Json:
    panel = Panel(
        23,
        "Since the last sign of progress",
        "How long a load has shown nothing new "
        "(`vllm_agent_load_last_progress_timestamp_seconds`): no bytes, no shard, no stage, no "
        "memory, no log line.",
        Area(12, 32, 12, 9),
        "s",
        "No starts in this range",
    )
    moved = metric("load_last_progress_timestamp_seconds")
    return timeseries(panel, [over_time("A", f"clamp_min(time() - {moved}, 0)", SERVER_NAME)])
