"""The page as text: right to the byte, cheap to write, and never lost to one bad family."""

from __future__ import annotations

import logging
import platform
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import parser as text_parser
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.utils import floatToGoString

import vllm_agent
from tests.expose import snapshots
from tests.expose.reference import WRITERS, OwnProcess, Reference
from tests.expose.snapshots import (
    EVERY_DEVICE,
    NOW,
    STARTED,
    ad_hoc_server,
    agent,
    backing_off,
    bare_device,
    crashed_server,
    device,
    downloading,
    ended_local_server,
    fresh_server,
    gpu,
    life,
    loading_life,
    loading_server,
    local_server,
    lost_device,
    managed_server,
    server,
    tree,
)
from vllm_agent.expose import exposition as exposition_module
from vllm_agent.expose.exposition import DROPPED_FAMILY, DROPPED_GPU, Exposition
from vllm_agent.expose.family import Family, MetricType
from vllm_agent.expose.metric_families import (
    AGENT_FAMILIES,
    GPU_FAMILIES,
    MOMENT_FAMILIES,
    SERVER_FAMILIES,
)
from vllm_agent.expose.metric_families.state import STATE_TIME_FAMILIES
from vllm_agent.expose.text_format import FamilyText, TextFormat, header, number
from vllm_agent.observations import Component, ComponentRole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Sample

    from vllm_agent.snapshot import AgentSnapshot, GpuSnapshot

GOLDEN = Path(__file__).parent / "golden"
# The library declares no types for these.
parse_text: Callable[[str], Iterable[Metric]] = text_parser.text_string_to_metric_families
parse_openmetrics: Callable[[str], Iterable[Metric]] = (
    openmetrics_parser.text_string_to_metric_families
)
go_string: Callable[[float], str] = floatToGoString
EVERY_FAMILY: tuple[Family[Any], ...] = (
    *SERVER_FAMILIES,
    *MOMENT_FAMILIES,
    *GPU_FAMILIES,
    *AGENT_FAMILIES,
)
HOSTILE = 'quote " backslash \\ newline \n brace } é漢\U0001f600'
HOSTILE_PART = Component(ComponentRole.WORKER, HOSTILE, 7, is_alive=True)
HOSTILE_DEVICE = device(
    gpu=gpu(HOSTILE, uuid="x" * 500, name=HOSTILE, pci_bus_id=HOSTILE),
    servers=MappingProxyType({HOSTILE: 1, "x" * 500: 2, "": 3}),
)


class Page:
    """An exposition without a web server, and what it says it dropped."""

    def __init__(self, own_process: Any = None) -> None:
        self.dropped: Counter[str] = Counter()
        self.exposition = Exposition(
            current=agent,
            clock=lambda: NOW,
            count_dropped=lambda kind: self.dropped.update([kind]),
            own_process=own_process or OwnProcess(),
        )

    def text(self, snapshot: AgentSnapshot, text_format: TextFormat = TextFormat.PROMETHEUS) -> str:
        return self.exposition.render(text_format, snapshot, NOW).decode()


def samples_of(text: str, name: str) -> list[Sample]:
    families = parse_text(text)
    return [sample for family in families for sample in family.samples if sample.name == name]


def values_of(text: str, name: str) -> list[float]:
    return [sample.value for sample in samples_of(text, name)]


# --- right to the byte


@pytest.mark.parametrize("text_format", TextFormat)
@pytest.mark.parametrize(
    "snapshot",
    [
        agent(),
        agent(server(), crashed_server(), fresh_server("new")),
        agent(local_server(), ad_hoc_server(), ended_local_server(), discovered=3),
        agent(server(HOSTILE, model_name=HOSTILE, url="x" * 500)),
        agent(local_server(HOSTILE, tree=tree(components=(HOSTILE_PART,)))),
        agent(managed_server(), backing_off("olmo")),
        agent(local_server(), gpus=EVERY_DEVICE),
        agent(gpus=(HOSTILE_DEVICE, HOSTILE_DEVICE)),
    ],
    ids=[
        *("no server", "three servers", "local servers", "hostile names", "hostile title"),
        *("managed servers", "GPUs", "hostile GPUs"),
    ],
)
def test_the_page_is_what_prometheus_client_writes(snapshot, text_format):
    expected = Reference(snapshot, NOW).page(text_format)
    assert Page().exposition.render(text_format, snapshot, NOW) == expected


@given(st.lists(st.tuples(snapshots.agents, snapshots.instants), min_size=1, max_size=2))
@settings(max_examples=60, deadline=None)
def test_any_page_is_what_prometheus_client_writes_whatever_was_rendered_before(moments):
    page = Page().exposition
    for snapshot, now in (*moments, moments[0]):
        for text_format in TextFormat:
            expected = Reference(snapshot, now).page(text_format)
            assert page.render(text_format, snapshot, now) == expected


@given(st.floats() | st.integers(-(10**18), 10**18) | st.booleans())
def test_a_number_is_written_as_go_does(value):
    assert number(value) == go_string(value)


@pytest.mark.parametrize(
    ("text_format", "name"),
    [(TextFormat.PROMETHEUS, "metrics.txt"), (TextFormat.OPENMETRICS, "openmetrics.txt")],
)
def test_the_page_reads_as_agreed(text_format, name):
    """Delete the file and run the test twice to write it anew."""
    seen = (local_server("mixtral"), ended_local_server("phi"), ad_hoc_server("tiny@8000"))
    loading = (loading_server("opt"), loading_server("yi", life=loading_life(load=downloading())))
    own = (managed_server("gemma"), backing_off("olmo"))
    shown = agent(
        server(), crashed_server(), *seen, *loading, *own, discovered=5, gpus=EVERY_DEVICE
    )
    text = Page().text(shown, text_format)
    for here in (f'version="{vllm_agent.__version__}"', f'"{platform.python_version()}"'):
        assert here in text
        text = text.replace(here, here.split('"', maxsplit=1)[0] + '"X"')
    golden = GOLDEN / name
    if not golden.exists():
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
        pytest.fail(f"wrote {golden.name}; read it before it is kept")
    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text_format", "expected"),
    [
        (
            TextFormat.PROMETHEUS,
            r'# HELP x_total A "b" \\ and\nmore.' + "\n# TYPE x_total counter\n",
        ),
        (TextFormat.OPENMETRICS, r"# HELP x A \"b\" \\ and\nmore." + "\n# TYPE x counter\n"),
    ],
)
def test_help_is_escaped_as_each_format_wants(text_format, expected):
    text = 'A "b" \\ and\nmore.'
    family: Family[None] = Family("x_total", MetricType.COUNTER, text, (), (), lambda _: ())
    assert header(family, text_format) == expected
    metric = CounterMetricFamily("x_total", text)
    assert WRITERS[text_format](SimpleNamespace(collect=lambda: [metric])).startswith(
        expected.encode()
    )


def test_hostile_label_values_survive_the_way_to_a_parser():
    text = Page().text(agent(server(HOSTILE, model_name=HOSTILE)))
    (info,) = samples_of(text, "vllm_agent_server_info")
    assert (info.labels["server"], info.labels["model_name"]) == (HOSTILE, HOSTILE)


def test_a_name_that_utf_8_cannot_express_does_not_cost_the_page():
    text = Page().text(agent(server("bad\ud800name", model_name="\udcff")))
    assert 'server="bad?name"' in text


def test_openmetrics_is_valid_to_its_strict_parser():
    text = Page().text(agent(server(), crashed_server()), TextFormat.OPENMETRICS)
    names = {family.name for family in parse_openmetrics(text)}
    assert "vllm_agent_server_crashes" in names
    assert text.endswith("# EOF\n")


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    "snapshot",
    [
        agent(),
        agent(server(HOSTILE), crashed_server(), fresh_server("new")),
        agent(local_server(), ad_hoc_server(), ended_local_server(), loading_server("yi")),
        agent(local_server(), gpus=(*EVERY_DEVICE, HOSTILE_DEVICE, HOSTILE_DEVICE)),
    ],
    ids=["no server", "three servers", "local servers", "GPUs"],
)
def test_promtool_has_nothing_to_say(snapshot):
    page = Exposition(agent, lambda: NOW, print).render(TextFormat.PROMETHEUS, snapshot, NOW)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_family_has_help_and_none_says_when_it_was_created():
    for text_format in TextFormat:
        text = Page().text(agent(server()), text_format)
        assert "_created" not in text
        for family in EVERY_FAMILY:
            name = family.name
            if text_format is TextFormat.OPENMETRICS and family.type is MetricType.COUNTER:
                name = name.removesuffix("_total")
            assert f"# HELP {name} {family.help}\n# TYPE {name} {family.type}\n" in text


def test_the_agents_own_process_is_on_the_page():
    exposition = Exposition(agent, lambda: NOW, print)
    text = exposition.render(TextFormat.PROMETHEUS, agent(), NOW).decode()
    assert values_of(text, "process_resident_memory_bytes")[0] > 1_000_000


# --- what is kept between scrapes


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the families by one that notes whom it is asked about."""
    asked: list[str] = []

    def samples(subject: Any) -> Sequence[tuple[tuple[str, ...], float]]:
        asked.append(subject.name)
        return [((), 1.0)]

    family = Family("vllm_agent_x", MetricType.GAUGE, "X.", ("server",), (), samples)
    monkeypatch.setattr(exposition_module, "SERVER_FAMILIES", (family,))
    return asked


def test_an_unchanged_server_is_not_asked_again(monkeypatch):
    asked = watched(monkeypatch)
    page, first, second = Page(), server("first"), server("second")
    page.text(agent(first, second))
    page.text(agent(first, replace(second, version="0.28.0")))
    assert asked == ["first", "second", "second"]


def test_a_server_that_left_is_forgotten(monkeypatch):
    asked = watched(monkeypatch)
    page, first, second = Page(), server("first"), server("second")
    page.text(agent(first, second))
    assert 'server="second"' not in page.text(agent(first))
    page.text(agent(first, second))
    assert asked == ["first", "second", "second"]


def test_time_runs_on_for_an_unchanged_server():
    page, snapshot = Page().exposition, agent(server())
    for now in (STARTED, NOW):
        text = page.render(TextFormat.PROMETHEUS, snapshot, now).decode()
        (spent,) = values_of(text, "vllm_agent_server_state_seconds_total")
        assert spent == now.since(STARTED)


def test_a_server_that_keeps_renaming_its_model_does_not_fill_the_memory():
    family = next(f for f in SERVER_FAMILIES if f.name == "vllm_agent_server_info")
    text = FamilyText(family, "llama")
    for count in range(1_000):
        assert f'model_name="{count}"' in text.render(server(model_name=str(count)))
    assert len(text._beginnings) <= 128


def test_a_gpu_is_asked_again_when_its_snapshot_changes_and_forgotten_when_it_goes(monkeypatch):
    asked: list[str] = []

    def samples(subject: GpuSnapshot) -> Sequence[tuple[tuple[str, ...], float]]:
        asked.append(subject.gpu.index)
        return [((), 1.0)]

    family = Family("vllm_agent_x", MetricType.GAUGE, "X.", ("gpu", "uuid"), (), samples)
    monkeypatch.setattr(exposition_module, "GPU_FAMILIES", (family,))
    page, first, second = Page(), device("0"), device("1")

    page.text(agent(gpus=(first, second)))
    page.text(agent(gpus=(first, device("1"))))
    assert asked == ["0", "1", "1"]

    assert 'gpu="1"' not in page.text(agent(gpus=(first,)))
    assert "gpu=" not in page.text(agent())
    page.text(agent(gpus=(first,)))
    assert asked == ["0", "1", "1", "0"]


def test_of_two_gpus_with_the_same_labels_the_first_is_shown_and_the_other_counted():
    page = Page()
    text = page.text(agent(gpus=(device("0"), lost_device("0"), bare_device("0"))))
    assert len(samples_of(text, "vllm_agent_gpu_info")) == 2
    assert samples_of(text, "vllm_agent_gpu_xid_errors_total") == []
    assert page.dropped == {DROPPED_GPU: 1}


def test_more_servers_on_one_gpu_than_lines_are_kept_for():
    many = MappingProxyType({f"server-{number}": number for number in range(300)})
    page = Page()
    for _ in range(2):
        text = page.text(agent(gpus=(device(servers=many),)))
        values = values_of(text, "vllm_agent_server_gpu_memory_used_bytes")
        assert values == list(range(300))


# --- isolation


class Broken(tuple[tuple[tuple[str, ...], float], ...]):
    """Fails in the middle, after the first sample was taken."""

    __slots__ = ()

    def __iter__(self) -> Iterator[tuple[tuple[str, ...], float]]:
        yield ("first",), 1.0
        raise KeyError("second")


def broken(subject: Any) -> Sequence[tuple[tuple[str, ...], float]]:
    return Broken()


@pytest.mark.parametrize(
    "table", ["SERVER_FAMILIES", "MOMENT_FAMILIES", "GPU_FAMILIES", "AGENT_FAMILIES"]
)
def test_a_family_that_raises_loses_only_itself(monkeypatch, caplog, table):
    families = getattr(exposition_module, table)
    shown = agent(server(), gpus=(device(),))
    whole = Page().text(shown)
    subject_labels = families[0].subject_labels
    bad = Family("vllm_agent_bad", MetricType.GAUGE, "Bad.", subject_labels, ("x",), broken)
    monkeypatch.setattr(exposition_module, table, (*families, bad))
    page = Page()
    with caplog.at_level(logging.ERROR):
        text = page.text(shown)
        page.text(agent(server(), gpus=(device(),)))
    assert "vllm_agent_bad{" not in text
    assert set(whole.splitlines()) <= set(text.splitlines())
    assert page.dropped == {DROPPED_FAMILY: 2}
    assert [record.args for record in caplog.records] == [("vllm_agent_bad",)]
    assert "KeyError" in caplog.text


def test_a_state_time_that_lost_a_state_loses_only_its_families():
    odd = life(state_time=replace(life().state_time, seconds=MappingProxyType({})))
    page = Page()
    text = page.text(agent(server("odd", life=odd), server("sound")))
    assert sum(values_of(text, "vllm_agent_server_state")) == 2
    assert len(values_of(text, "vllm_agent_server_desired_seconds_total")) == 1
    assert page.dropped == {DROPPED_FAMILY: len(STATE_TIME_FAMILIES)}


@pytest.mark.parametrize("text_format", TextFormat)
def test_an_unreadable_proc_loses_only_the_agents_own_process(text_format):
    class Unreadable:
        def collect(self) -> Iterable[Metric]:
            raise UnboundLocalError

    page = Page(own_process=Unreadable())
    text = page.text(agent(server()), text_format)
    assert "process_cpu" not in text
    assert "vllm_agent_server_state{" in text
    assert text.endswith("# EOF\n") == (text_format is TextFormat.OPENMETRICS)
    assert page.dropped == {DROPPED_FAMILY: 1}


def test_a_family_writes_its_text_again_only_when_its_samples_change():
    values = [1.0]
    family: Family[None] = Family("x", MetricType.GAUGE, "X.", (), (), lambda _: [((), values[0])])
    text = FamilyText(family)
    first = text.render(None)
    assert text.render(None) is first
    values[0] = 2.0
    assert text.render(None) != first
