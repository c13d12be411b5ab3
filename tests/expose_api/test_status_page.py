"""The status page: says what is wrong in words, runs nothing, and trusts nothing from outside."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from hypothesis import given

from tests.expose.snapshots import (
    CONTAINER,
    ENGINE,
    HIDDEN,
    NOW,
    WORKERS,
    agent,
    agents,
    crashed_server,
    ended_local_server,
    life,
    local_server,
    orphans,
    server,
    sighting,
    tree,
)
from vllm_agent.expose.status_page import HEADERS, render
from vllm_agent.expose.status_page.rows import moment
from vllm_agent.lifecycle.reasons import REASON_TEXT, Reason
from vllm_agent.lifecycle.states import PHASE_STATE, Phase
from vllm_agent.snapshot import CollectorSnapshot

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


@given(agents)
def test_whatever_a_server_says_stays_text(snapshot) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    part = replace(ENGINE, rank=hostile, is_alive=False)
    changed = replace(
        snapshot,
        servers=tuple(
            replace(
                s,
                model_name=hostile,
                name=s.name + hostile,
                model_names=(hostile, f"b{hostile}"),
                sighting=sighting(unit=hostile),
                tree=tree(components=(part,)),
            )
            for s in snapshot.servers
        ),
        sights=(replace(HIDDEN[1], why_not=hostile, fix=hostile),),
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
