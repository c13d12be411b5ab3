"""/metrics as recorded from vLLM 0.32.0, with numbers that follow the traffic.

Values live in memory shared by all API servers: each adds to its own region, and every
page is the sum, like prometheus_client's multiprocess mode.
"""

from __future__ import annotations

import mmap
import os
import re
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_agent.demo.standin import process

if TYPE_CHECKING:
    from vllm_agent.demo.standin.options import Options

_TEMPLATE = Path(__file__).parents[1] / "metrics_template.txt"
_BUCKET = re.compile(r'(?P<name>[^{]+)_bucket\{(?P<before>.*?)le="(?P<le>[^"]+)",?(?P<after>.*)\}')
_HANDLER = re.compile(r'handler="([^"]*)"')
# Series of the API process itself, which prometheus_client's multiprocess mode leaves out.
_OWN_PROCESS = ("process_", "python_")
_RECORDED_HANDLER, _CHAT_HANDLER = 'handler="/v1/completions"', 'handler="/v1/chat/completions"'
_DOUBLE_BYTES = 8
# floatToGoString of prometheus_client switches to an exponent beyond six digits.
_PLAIN_DIGITS = 6


class MetricsPage:
    """The page of one server; made before the API servers are forked, one region for each."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._own_process = not options.several_processes
        self._region = 0
        self._rows: list[str | int] = []
        self._names: list[str] = []
        self._slots: dict[str, int] = {}
        self._buckets: dict[str, list[tuple[float, int]]] = {}
        start: list[float] = []
        for family in _families():
            self._add_family(family, start)
        self._size = len(self._names)
        shared = mmap.mmap(-1, options.api_servers * self._size * _DOUBLE_BYTES)
        self._values = memoryview(shared).cast("d")
        for slot, value in enumerate(start):
            self._values[slot] = value
        self._start_clocks()

    def use_region(self, index: int) -> None:
        """Chooses the region of the API server that this process is."""
        self._region = index * self._size

    def add(self, series: str, amount: float = 1.0) -> None:
        """Raises a counter, named as it is printed."""
        self._values[self._region + self._slots[series]] += amount

    def put(self, series: str, value: float) -> None:
        """Sets a gauge, named as it is printed."""
        self._values[self._region + self._slots[series]] = value

    def observe(self, name: str, labels: str, value: float) -> None:
        """Counts a value in a histogram."""
        for upper, slot in self._buckets[f"{name}{{{labels}}}"]:
            if value <= upper:
                self._values[self._region + slot] += 1
        braces = f"{{{labels}}}" if labels else ""
        self.add(f"{name}_count{braces}")
        self.add(f"{name}_sum{braces}", value)

    def engine_labels(self, engine: int) -> str:
        """The labels of an engine's series without others, as they are printed."""
        return f'engine="{engine}",model_name="{self._options.served_model_names[0]}"'

    def render(self) -> str:
        """The page of this moment."""
        if self._own_process:
            self._measure_process()
        seen = {name for name in self._handlers() if self._sum(self._slots[name]) > 0}
        handlers = {match[1] for name in seen if (match := _HANDLER.search(name))}
        lines = []
        for row in self._rows:
            if isinstance(row, str):
                lines.append(row)
                continue
            name = self._names[row]
            handler = _HANDLER.search(name)
            if handler is None or handler[1] in handlers:
                lines.append(f"{name} {_go(self._sum(row))}")
        return "\n".join(lines) + "\n"

    def _handlers(self) -> list[str]:
        return [name for name in self._slots if name.startswith("http_requests_total{")]

    def _sum(self, slot: int) -> float:
        return sum(self._values[slot :: self._size])

    def _add_family(self, family: list[str], start: list[float]) -> None:
        comments = [line for line in family if line.startswith("#")]
        samples = [line for line in family if not line.startswith("#")]
        if not self._own_process and comments[0].split()[2].startswith(_OWN_PROCESS):
            return
        self._rows += comments
        for engine in range(self._options.engines):
            for sample in samples:
                if engine == 0 or "<engine>" in sample:
                    self._add_sample(sample.replace("<engine>", str(engine)), start)
        for sample in samples:
            if _RECORDED_HANDLER in sample:
                self._add_sample(sample.replace(_RECORDED_HANDLER, _CHAT_HANDLER), start)

    def _add_sample(self, sample: str, start: list[float]) -> None:
        name, _, value = sample.rpartition(" ")
        name = name.replace("<model>", self._options.served_model_names[0])
        slot = len(self._names)
        self._names.append(name)
        self._slots[name] = slot
        self._rows.append(slot)
        start.append(float(value))
        bucket = _BUCKET.fullmatch(name)
        if bucket is not None:
            labels = (bucket["before"] + bucket["after"]).rstrip(",")
            key = f"{bucket['name']}{{{labels}}}"
            self._buckets.setdefault(key, []).append((float(bucket["le"]), slot))

    def _start_clocks(self) -> None:
        now = time.time()
        for name, slot in self._slots.items():
            if "_created" in name:
                self._values[slot] = now
        sleeping = self._options.sleeping and self._options.fault_after == 0
        if sleeping:
            self.fall_asleep()

    def fall_asleep(self) -> None:
        """Shows every engine at sleep level 1."""
        for engine in range(self._options.engines):
            state = f"vllm:engine_sleep_state{{{self.engine_labels(engine)},sleep_state="
            self.put(f'{state}"awake"}}', 0)
            self.put(f'{state}"weights_offloaded"}}', 1)

    def _measure_process(self) -> None:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
        page_bytes = resource.getpagesize()
        self.put("process_virtual_memory_bytes", int(pages[0]) * page_bytes)
        self.put("process_resident_memory_bytes", int(pages[1]) * page_bytes)
        self.put("process_start_time_seconds", process_start_time())
        self.put("process_cpu_seconds_total", time.process_time())
        self.put("process_open_fds", len(os.listdir("/proc/self/fd")))  # noqa: PTH208  no Path needed
        self.put("process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def process_start_time() -> float:
    """Unix time at which this process started, as prometheus_client computes it."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith("btime "):
            boot = float(line.split()[1])
            return boot + process.start_time_ticks() / os.sysconf("SC_CLK_TCK")
    raise RuntimeError("/proc/stat has no btime")


def _families() -> list[list[str]]:
    families: list[list[str]] = []
    for line in _TEMPLATE.read_text(encoding="utf-8").splitlines():
        if line.startswith("# HELP"):
            families.append([])
        families[-1].append(line)
    return families


def _go(value: float) -> str:
    """A number as prometheus_client prints it."""
    text = repr(float(value))
    point = text.find(".")
    if value <= 0 or point <= _PLAIN_DIGITS or "e" in text:
        return text
    mantissa = f"{text[0]}.{text[1:point]}{text[point + 1 :]}".rstrip("0.")
    return f"{mantissa}e+{point - 1:02d}"
