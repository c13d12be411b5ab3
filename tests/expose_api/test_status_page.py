"""The status page: says what is wrong in words, runs nothing, and trusts nothing from outside."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.expose.snapshots import (
    CONTAINER,
    ENGINE,
    GIB,
    HIDDEN,
    NOW,
    WORKERS,
    agent,
    agents,
    bare_device,
    crashed_server,
    device,
    downloading,
    ended_local_server,
    gpu,
    late_load,
    life,
    load,
    loaded,
    loading_life,
    loading_server,
    local_server,
    look,
    lost_device,
    orphaned_device,
    orphans,
    server,
    sighting,
    tree,
)
from vllm_agent.expose.status_page import HEADERS, render
from vllm_agent.expose.status_page.gpus import MAX_LINES
from vllm_agent.expose.status_page.words import moment, span
from vllm_agent.lifecycle.load_history import LoadHistory
from vllm_agent.lifecycle.management import Management
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.server_life import Ending
from vllm_agent.lifecycle.states import PHASE_STATE, Phase, ServerState
from vllm_agent.observations import Download, Instant, Stage, VllmCommand
from vllm_agent.snapshot import CollectorSnapshot, FaultCount, GpuStranger

VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page taken apart: its text, tags and attributes; unbalanced tags fail the test."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data) -> None:
        if self._open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @property
    def links(self) -> list[str]:
        return [str(attributes["href"]) for tag, attributes in self.tags if tag == "a"]


def test_a_crashed_server_is_explained() -> None:
    page = Page(render(agent(server(), crashed_server()), NOW))
    text = page.text

    for part in ("crashed", "unreachable", REASON_TEXT[Reason.UNREACHABLE].advice):
        assert part in text
    assert "UTC" not in text, "an absolute time has no room"
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "time"]
    assert "2025-06-15 15:08:10 UTC" in titles
    assert "10 seconds ago" in text
    assert "restart limit reached" in text
    assert "0.27.1" in text


def test_what_is_wrong_comes_first() -> None:
    stopped = server("stopped", life=life(Phase.ABSENT))
    failed = server("failed", life=life(Phase.UNREADY))

    page = Page(render(agent(server(), stopped, failed, server("b"), crashed_server()), NOW))

    shown = [link.rpartition("/")[2] for link in page.links if "api/v1/servers/" in link]
    assert shown == ["qwen", "failed", "stopped", "llama", "b"]
    assert "<title>1 crashed, 1 failed, 1 stopped, 2 running - " in render(
        agent(server(), stopped, failed, server("b"), crashed_server()), NOW
    )


def test_a_server_that_runs_is_one_line() -> None:
    running = server(model_names=("meta-llama/Llama-3.1-8B-Instruct", "lora-a", "lora-b"))

    html = render(agent(running), NOW)

    row = html.partition("<tbody>")[2].partition("</tbody>")[0]
    assert "<br>" not in row
    assert 'title="meta-llama/Llama-3.1-8B-Instruct, lora-a, lora-b"' in row
    assert "+2" in Page(row).text


@pytest.mark.parametrize("phase", list(Phase))
def test_every_state_is_a_word_with_a_style_of_its_own(phase) -> None:
    html = render(agent(server(life=life(phase))), NOW)

    state = PHASE_STATE[phase]
    assert f'<span class="state state-{state}">{state}</span>' in html
    assert f".state-{state}" in html


def test_without_servers_it_says_what_to_write() -> None:
    text = Page(render(agent(discovered=0), NOW)).text

    assert "No vLLM server runs on this host" in text
    assert "mode: external" in text
    assert "vllm-agent --config.file=" in text


@pytest.mark.parametrize(
    ("discovered", "told"),
    [
        (None, "discovery is off, or is blind"),
        (1, "1 vLLM server runs on this host"),
        (3, "3 vLLM servers run on this host"),
    ],
)
def test_it_says_what_was_found(discovered, told) -> None:
    assert told in Page(render(agent(server(), discovered=discovered), NOW)).text


def processes_cell(shown) -> str:
    html = render(agent(shown), NOW)
    return html.partition('data-label="Processes">')[2].partition("</td>")[0]


def test_a_local_server_shows_its_main_process_and_has_the_rest_in_the_title() -> None:
    assert processes_cell(local_server()) == (
        '<span title="llama.service, api_server 4021, engine_core 4050, worker tp0 4100, '
        'worker tp1 4101">PID 4021</span>'
    )
    contained = sighting(unit=None, container_id=CONTAINER)
    assert "container 0123456789ab," in processes_cell(local_server(sighting=contained))
    assert processes_cell(server()) == ""


def test_a_part_that_is_gone_and_what_was_left_behind_are_shown() -> None:
    half = tree(
        components=(ENGINE, replace(WORKERS[0], is_alive=False), WORKERS[1]), orphans=orphans(1)
    )
    cell = processes_cell(local_server(tree=half))
    assert cell.endswith("</span><br>worker tp0 is gone<br><strong>1 orphaned</strong>")

    cell = processes_cell(ended_local_server())
    assert cell.endswith(">none</span><br><strong>2 orphaned</strong>")


def why(shown) -> str:
    html = render(agent(shown), NOW)
    return re.sub(" +", " ", Page(html.partition('<td class="why">')[2].partition("</td>")[0]).text)


def test_a_load_shows_its_stage_with_a_bar_and_what_is_left() -> None:
    html = render(agent(loading_server()), NOW)

    assert (
        '<progress aria-label="load_weights of llama" max="1" value="0.267">27 %</progress> 27 %'
    ) in html
    assert why(loading_server()) == (
        "stage load_weights for 30 s, 55 s the last time 27 % 27 %, shard 4 of 11, "
        "4.0 GiB of 15.0 GiB, about 2 min left"
    )


def test_a_download_shows_its_bytes() -> None:
    shown = loading_server(life=loading_life(load=downloading()))
    assert "stage download for 60 s 20 % 20 %, 3.0 GiB of 15.0 GiB, about " in why(shown)

    unmeasured = downloading(download=Download(3 * GIB, None, None, is_under_way=True))
    shown = loading_server(life=loading_life(load=unmeasured, load_history=LoadHistory()))
    assert why(shown) == "stage download for 60 s 3.0 GiB"
    assert "<progress" not in render(agent(shown), NOW)


def test_a_stage_that_nothing_measures_has_no_bar() -> None:
    shown = loading_server(life=loading_life(load=load(stage=Stage.COMPILE)))
    assert why(shown) == "stage compile for 30 s, 40 s the last time about 18 s left"


def test_a_stalled_load_says_so_with_the_advice() -> None:
    stalled = load(is_stalled=True, look=look(trouble="NCCL <timeout>"))
    reason = Reason.LOAD_STALLED
    shown = loading_server(life=loading_life(Phase.STALLED, load=stalled, reason=reason))

    assert "No progress in stage load_weights for 1 s" in why(shown)
    assert why(shown).endswith("stalled , last progress 1 second ago")

    unseen = load(is_stalled=None, look=look(trouble="NCCL <timeout>"))
    told = why(loading_server(life=loading_life(load=unseen)))
    assert "nothing is seen that could tell whether it moves; last progress 1 second ago" in told
    assert told.endswith("its log says: NCCL <timeout>")


def test_a_load_that_was_not_seen_to_move_yet_says_so() -> None:
    stalled, unseen = late_load(is_stalled=True), late_load(is_stalled=None)
    told = why(loading_server(life=loading_life(Phase.STALLED, load=stalled)))
    assert told.endswith("stalled , no progress seen yet")
    told = why(loading_server(life=loading_life(load=unseen)))
    assert told.endswith("could tell whether it moves; no progress seen yet")


def test_an_estimate_of_nothing_is_not_shown() -> None:
    done = load(stage=Stage.WARMUP, stage_entered=Instant(1_092.0, 1_750_000_092.0))
    assert "left" not in why(loading_server(life=loading_life(load=done)))


@pytest.mark.parametrize("phase", [Phase.READY, Phase.CRASHED, Phase.ENDING])
def test_a_load_that_is_over_is_not_on_the_page(phase) -> None:
    assert "stage" not in why(loading_server(life=loading_life(phase, load=loaded())))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (3_570, "1 h 0 min"), (7_980, "2 h 13 min")],
)
def test_a_span_of_time(seconds, text) -> None:
    assert span(seconds) == text


def gpu_cells(*shown, row=0) -> dict[str, str]:
    """The cells of one GPU by their label; that of the header is under "GPU"."""
    table = render(agent(gpus=shown), NOW).partition("<h2>GPUs</h2>")[2]
    html = table.partition("<tbody>\n")[2].partition("</tbody>")[0].splitlines()[row]
    cells = dict(re.findall('<td[^>]* data-label="([^"]*)">(.*?)</td>', html))
    (cells["GPU"],) = re.findall('<th scope="row">(.*?)</th>', html)
    return cells


def test_a_gpu_shows_what_it_does_and_who_holds_its_memory() -> None:
    cells = gpu_cells(device())

    name = "NVIDIA H100 80GB HBM3"
    assert cells["GPU"] == f'0 <span class="name quiet" title="{name}, GPU-0">{name}</span>'
    assert cells["Memory"].endswith("</svg>72.5 GiB of 80.0 GiB")
    assert cells["Servers"].endswith('href="api/v1/servers/llama">llama</a> 72.0 GiB')
    assert (cells["Orphans"], cells["Other"]) == ("none", "512.0 MiB")
    assert cells["Load"] == "87 % busy, 61 °C, 412 of 700 W"
    assert cells["Faults"] == ""


def test_the_bar_of_a_gpu_has_a_part_for_each_kind_of_holder() -> None:
    assert re.findall(
        'class="([a-z]+)" x="([0-9.]+)%" width="([0-9.]+)%"', gpu_cells(orphaned_device())["Memory"]
    ) == [("held", "0.0", "75.0"), ("orphaned", "75.0", "15.0"), ("other", "90.0", "0.6")]
    unattributed = device(servers={}, orphans=None, orphan_bytes=None, other_bytes=None)
    assert '<rect class="other" x="0.0%" width="90.6%"' in gpu_cells(unattributed)["Memory"]
    beyond = gpu_cells(device(servers={"llama": 100 * GIB}))["Memory"]
    assert re.findall('width="([0-9.]+)%"', beyond) == ["100.0"]
    assert "<rect" not in gpu_cells(device(gpu=gpu(memory_used_bytes=0), servers={}))["Memory"]


def test_orphans_of_a_gpu_are_highlighted_with_their_pid_and_age() -> None:
    cells = gpu_cells(device(), orphaned_device(), row=1)

    assert cells["Orphans"].startswith('<span class="state state-crashed">12.0 GiB</span><br>')
    told = Page(cells["Orphans"]).text
    assert "PID 4301, worker of  phi , 12.0 GiB, started  2 hours ago" in told
    assert cells["Servers"].count("<br>") == 1
    assert cells["Servers"].endswith('mixtral</a> <span class="quiet">unknown</span>')
    html = render(agent(gpus=(orphaned_device(),)), NOW)
    assert "vllm-agent gpus" in Page(html).text
    assert '<td class="why" data-label="Orphans">' in html, "or its lines would not wrap"
    assert "vllm-agent gpus" not in Page(render(agent(gpus=(device(),)), NOW)).text


def test_faults_of_a_gpu_are_told_newest_first() -> None:
    xids = {31: FaultCount(3, NOW.unix_seconds - 90), 79: FaultCount(1, NOW.unix_seconds - 5)}

    told = Page(gpu_cells(device(xids=xids))["Faults"]).text

    assert re.sub(" +", " ", told) == "XID 79 5 seconds ago XID 31 1 minute ago , 3 times"


def test_a_lost_gpu_says_so_and_keeps_its_faults() -> None:
    cells = gpu_cells(lost_device(servers={"llama": 1}))

    assert '<span class="state state-crashed">lost</span>' in cells["Memory"]
    assert "XID 79" in cells["Faults"]
    assert {cells[label] for label in ("Servers", "Orphans", "Other", "Load")} == {""}


def test_a_gpu_that_is_cut_into_instances_points_to_them() -> None:
    whole = device(gpu=gpu(memory_used_bytes=None, memory_total_bytes=None))
    part = device(gpu=gpu("0:1", parent_uuid="GPU-0"))

    assert "cut into instances" in gpu_cells(whole, part)["Memory"]
    assert "72.5 GiB" in gpu_cells(whole, part, row=1)["Memory"]


def test_what_is_unknown_of_a_gpu_is_told_as_unknown() -> None:
    unknown = '<span class="quiet">unknown</span>'

    cells = gpu_cells(bare_device())

    assert cells["Memory"] == f"{unknown} of 1.0 GiB"
    assert {cells[label] for label in ("Servers", "Orphans", "Other", "Load")} == {unknown}
    assert ">amd</span>" in cells["GPU"]


def test_a_row_of_a_gpu_names_the_largest_holders_and_counts_the_rest() -> None:
    held = {f"server-{number}": number * GIB for number in range(MAX_LINES + 3)}

    servers = gpu_cells(device(servers=held))["Servers"].split("<br>")

    assert len(servers) == MAX_LINES + 1
    assert servers[0].endswith(" 10.0 GiB")
    assert servers[-1] == '<span class="quiet">and 3 more</span>'


def test_other_memory_of_a_gpu_has_the_largest_processes_that_hold_it() -> None:
    strangers = (GpuStranger(4242, "python3", 12 * GIB), GpuStranger(5, None, None))
    cell = gpu_cells(device(strangers=strangers))["Other"]
    unknown = '<span class="quiet">unknown</span>'
    assert cell == f"512.0 MiB<br>python3 PID 4242, 12.0 GiB<br>PID 5, {unknown}"

    many = tuple(GpuStranger(number, "x", GIB) for number in range(MAX_LINES + 3))
    lines = gpu_cells(device(strangers=many))["Other"].split("<br>")
    assert len(lines) == MAX_LINES + 1
    assert lines[-1] == '<span class="quiet">and 4 more</span>'


def test_without_gpus_there_is_no_section_unless_they_are_missed() -> None:
    assert "GPUs" not in render(agent(), NOW)
    working = CollectorSnapshot("gpu", is_up=True)
    assert "GPUs" not in render(agent(collectors=(working,)), NOW)

    hung = CollectorSnapshot("gpu", is_up=False, detail="NVML does not answer")
    text = Page(render(agent(collectors=(hung,)), NOW)).text

    assert "NVML does not answer" in text
    assert "What is not shown here is not known" in text
    assert "api/v1/gpus" in Page(render(agent(gpus=(device(),)), NOW)).links


def test_what_the_agent_does_not_see_of_the_host_is_a_notice() -> None:
    text = Page(render(agent(sights=HIDDEN), NOW)).text

    assert "its journal may not be read" in text
    assert "usermod -aG systemd-journal x" in text
    assert "does not see everything" not in Page(render(agent(sights=HIDDEN[:1]), NOW)).text


def test_an_unready_agent_and_a_broken_collector_say_so() -> None:
    store = CollectorSnapshot("store", is_up=False, detail="the disk is full")

    text = Page(render(agent(is_ready=False, collectors=(store,)), NOW)).text

    assert "Not ready" in text
    assert "the disk is full" in text
    assert "Not ready" not in Page(render(agent(), NOW)).text


@pytest.mark.parametrize(
    ("until", "said"), [(float("inf"), "in maintenance"), (NOW.unix_seconds + 90, "in 1 minute")]
)
def test_maintenance_and_sleep_are_shown(until, said) -> None:
    changed = life(maintenance_until_unix_seconds=until, is_sleeping=True)

    text = Page(render(agent(server(life=changed)), NOW)).text

    assert said in text
    assert "sleeping" in text


def test_it_links_to_what_there_is() -> None:
    links = Page(render(agent(server("a/b@8000")), NOW, "/custom/path")).links

    assert {"custom/path", "api/v1/servers", "-/healthy", "-/ready"} <= set(links)
    assert "api/v1/servers/a%2Fb%408000" in links
    assert sum("/docs/" in link for link in links) == 2
    assert not any(link.startswith("/") for link in links), "a proxy may serve it below a prefix"


def test_it_reloads_itself_without_scripts_or_resources_from_elsewhere() -> None:
    page = Page(render(agent(server()), NOW))

    assert ("meta", {"http-equiv": "refresh", "content": "5"}) in page.tags
    assert not {"script", "img", "link", "iframe", "form"} & {tag for tag, _ in page.tags}
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert not [a for _, a in page.tags if "src" in a or "style" in a]


def test_the_policy_allows_this_style_and_nothing_else() -> None:
    styles = re.findall("<style>(.*?)</style>", render(agent(), NOW), re.DOTALL)
    digest = b64encode(sha256(styles[0].encode()).digest()).decode()

    policy = HEADERS["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(styles) == 1


@given(agents, st.sampled_from([Phase.LOADING, Phase.STALLED, Phase.CRASHED]))
def test_whatever_a_server_says_stays_text(snapshot, phase) -> None:
    hostile = "\"'><script>alert(1)</script>&"
    part = replace(ENGINE, rank=hostile, is_alive=False)
    changed = replace(
        snapshot,
        servers=tuple(
            replace(
                s,
                model_name=hostile,
                name=s.name + hostile,
                model_names=(hostile, f"b{hostile}"),
                sighting=sighting(unit=hostile, command=VllmCommand(model=f"/{hostile}")),
                tree=tree(components=(part,)),
                life=loading_life(
                    phase,
                    reason=Reason.MODEL_NOT_FOUND,
                    load=load(look=look(trouble=hostile)),
                    management=Management(model=hostile, model_before=hostile),
                    last_ending=Ending(1, NOW, ServerState.CRASHED, None, 7, bundle=hostile),
                ),
            )
            for s in snapshot.servers
        ),
        sights=(replace(HIDDEN[1], why_not=hostile, fix=hostile),),
        gpus=tuple(
            replace(
                shown,
                gpu=replace(shown.gpu, index=hostile, uuid=hostile, name=hostile),
                servers={hostile: 1},
                orphans=tuple(replace(o, server=hostile) for o in shown.orphans or ()),
                strangers=(GpuStranger(5, hostile, 1),),
            )
            for shown in snapshot.gpus
        ),
    )

    page = Page(render(changed, NOW))

    assert "script" not in {tag for tag, _ in page.tags}


@pytest.mark.parametrize("unix_seconds", [None, 1e300, float("nan"), -1e300])
def test_a_time_that_no_calendar_has_is_unknown(unix_seconds) -> None:
    assert "unknown" in moment(unix_seconds, NOW)


async def test_the_page_is_served_with_its_headers(reader) -> None:
    response = await reader.get("/")

    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert 'href="custom"' in await response.text()
