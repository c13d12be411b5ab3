"""The stage of the scenarios: agents with servers, Prometheus, Alertmanager, and a receiver.

One Prometheus scrapes all agents under the names of their hosts. What happens to one server must
come out as alerts of that server, and of nobody else.
"""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from alerts.output import rules_text
from alerts.site import Site
from tests.e2e.agent_process import AgentProcess
from tests.e2e.managed_scene import Managed, ManagedAgent
from tests.fake_nvml import GIB, FakeDevice, FakeDriver, FakeMemory, FakeProcess
from tests.pipeline.journal import Journal
from tests.pipeline.processes import (
    Alertmanager,
    Prometheus,
    Target,
    Webhook,
    shipped_config_for,
    wait_until,
)
from vllm_agent.demo.launch import StandIn, free_port, write_checkpoint
from vllm_agent.demo.server import LIFETIME_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alerts.timing import Timing

JOB: Final = "vllm-agent"
SCRAPE_INTERVAL: Final = "1s"
AGENTS_AT_ONCE: Final = 3
"""Of more that start at once on two cores each might take longer than a test waits for one."""

PATIENCE_SECONDS: Final = 90.0
"""For hangs only."""

LOOK_SECONDS: Final = 0.25
"""How often Prometheus is asked by each who waits: it learns something new once a second."""

LIFETIME_SECONDS: Final = 3600
"""A server whose test was killed ends by itself; the longest test takes half of this."""

# Twice as slow as other tests ask: a busy machine must not make a server look unhealthy.
_PROBE: Final = {"interval": "2s", "timeout": "2s"}
_SPEED: Final = ("--speed", "10")
_WORKER_BYTES: Final = 30 * GIB


@dataclass(frozen=True, kw_only=True)
class Host:
    """An agent and the servers of its configuration; its name is its `instance`.

    `monitored` and `managed` have more settings of each server; an agent has either. One that has
    no server at all finds those of the whole machine, if `discovery` says so.
    """

    name: str
    monitored: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    external: Sequence[str] = ()
    managed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    discovery: str = "{enabled: false}"
    has_gpu: bool = False
    has_state_folder: bool = True
    scrape_interval: str | None = None

    @property
    def servers(self) -> frozenset[str]:
        """The names in its configuration."""
        return frozenset({*self.monitored, *self.external, *self.managed})


class Scene:
    """A host of the stage, seen from one of its servers."""

    def __init__(self, stage: Stage, host: Host, server: str) -> None:
        self.stage = stage
        self.host = host.name
        self.server = server
        self.port = stage.port(host.name, server)

    @property
    def label(self) -> str:
        """What the agent calls the server; one that is in no configuration has its port, too."""
        is_listed = self.server in self.stage.hosts[self.host].servers
        return self.server if is_listed else f"{self.server}@{self.port}"

    @property
    def agent(self) -> AgentProcess:
        """The agent of the host."""
        return self.stage.agents[self.host]

    @property
    def managed(self) -> ManagedAgent:
        """The agent of the host, one that starts servers."""
        agent = self.agent
        assert isinstance(agent, ManagedAgent)
        return agent

    @property
    def driver(self) -> FakeDriver:
        """The GPU driver of the host."""
        return self.stage.drivers[self.host]

    def of(self, server: str) -> Scene:
        """The same host, seen from another of its servers."""
        return Scene(self.stage, self.stage.hosts[self.host], server)

    def start(self, *arguments: str) -> StandIn:
        """Starts the server, and returns at once."""
        return self.stage.start_server(self, *arguments)

    def start_serving(self, *arguments: str) -> StandIn:
        """Starts the server, and returns when Prometheus has seen it running."""
        server = self.start(*arguments).wait_serving(PATIENCE_SECONDS)
        self.wait_seen("running")
        return server

    def wait_seen(self, state: str) -> None:
        """Waits until Prometheus has seen the server in this state."""
        self.wait_true(f"{self.series('vllm_agent_server_state', state=state)} == 1")

    def wait_paged(self, name: str) -> None:
        """Waits until somebody was paged for this host by an alert of this name."""
        self.stage.journal.wait(
            lambda alert: alert.instance == self.host,
            lambda entry: name in entry.pages,
            f"{name} has paged",
        )

    def wait_true(self, expr: str) -> None:
        """Waits until a query has a result."""
        self.stage.prometheus.wait_for(expr, PATIENCE_SECONDS, LOOK_SECONDS)

    def series(self, metric: str, **labels: str) -> str:
        """A selector of this server's series."""
        matchers = {"instance": self.host, "server": self.label, **labels}
        text = ", ".join(f'{key}="{value}"' for key, value in matchers.items())
        return f"{metric}{{{text}}}"

    def show_gpu(self, *pids: int) -> None:
        """The host has one GPU, and these processes hold memory of it."""
        held = tuple(FakeProcess(pid, _WORKER_BYTES) for pid in pids)
        memory = FakeMemory(used_bytes=len(held) * _WORKER_BYTES)
        self.driver.show(FakeDevice(uuid=f"GPU-{self.host}", memory=memory, processes=held))


class Stage:
    """Everything that runs; leaving it ends all of it."""

    def __init__(
        self,
        folder: Path,
        hosts: Sequence[Host],
        timing: Timing,
        *,
        nvml_folder: Path | None = None,
    ) -> None:
        self.folder = folder
        self.timing = timing
        self.hosts = {host.name: host for host in hosts}
        self.agents: dict[str, AgentProcess] = {}
        self.drivers: dict[str, FakeDriver] = {}
        self._nvml_folder = nvml_folder
        self._ports: dict[tuple[str, str], int] = {}
        self._servers: list[StandIn] = []
        self._changing = threading.Lock()
        self._stack = ExitStack()
        self._rules = folder / "rules.yml"
        self._rules.write_text(rules_text(Site(), timing), encoding="utf-8")
        self.model = write_checkpoint(folder / "tiny", shards=1)

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(self._close_servers)
            self.webhook = self._stack.enter_context(Webhook())
            config = shipped_config_for(self.webhook, self.folder)
            self.alertmanager = self._stack.enter_context(
                Alertmanager(self.folder / "alertmanager", config)
            )
            self.journal = self._stack.enter_context(Journal(self.webhook, self.alertmanager))
            self.agents = {host.name: self._agent(host) for host in self.hosts.values()}
            for agent in self.agents.values():
                self._stack.callback(agent.__exit__)
            self.prometheus = self._stack.enter_context(self._prometheus())
            with ThreadPoolExecutor(AGENTS_AT_ONCE) as pool:
                list(pool.map(AgentProcess.start, self.agents.values()))
            self._wait_scraped()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scene(self, host: str, server: str) -> Scene:
        """A host, seen from one of its servers."""
        return Scene(self, self.hosts[host], server)

    def port(self, host: str, server: str) -> int:
        """The port of a server, the same each time."""
        with self._changing:
            return self._ports.setdefault((host, server), free_port())

    def start_server(self, scene: Scene, *arguments: str) -> StandIn:
        """Starts a server, which ends with the stage."""
        server = StandIn.start(
            *_SPEED,
            *arguments,
            model=f"/models/{scene.server}",
            port=scene.port,
            environment={LIFETIME_VARIABLE: str(LIFETIME_SECONDS)},
        )
        with self._changing:
            self._servers.append(server)
        return server

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()

    def _prometheus(self) -> Prometheus:
        return Prometheus(
            self.folder / "prometheus",
            scrape_interval=SCRAPE_INTERVAL,
            evaluation_interval=SCRAPE_INTERVAL,
            targets=[
                Target(
                    address=f"127.0.0.1:{agent.port}",
                    job=JOB,
                    instance=name,
                    scrape_interval=self.hosts[name].scrape_interval,
                )
                for name, agent in self.agents.items()
            ],
            rule_files=[self._rules],
            alertmanagers=[self.alertmanager.address],
        )

    def _wait_scraped(self) -> None:
        wanted = len(self.agents)
        wait_until(
            lambda: len(self.prometheus.query(f'up{{job="{JOB}"}} == 1')) == wanted,
            "every agent is scraped",
            PATIENCE_SECONDS,
            LOOK_SECONDS,
        )

    def _agent(self, host: Host) -> AgentProcess:
        folder = self.folder / host.name
        folder.mkdir()
        environ = {}
        if host.has_gpu:
            assert self._nvml_folder is not None
            driver = FakeDriver(self._nvml_folder, folder / "nvml_state")
            self.drivers[host.name] = driver
            environ = driver.environment()
        if not host.has_state_folder:
            # Stands for every disk that cannot be written.
            (folder / "state").write_text("not a folder")
        gpu = "{interval: 1s, timeout: 300ms}" if host.has_gpu else "{nvml: off, amdgpu: off}"
        if host.managed:
            entries = [self._managed(host.name, name, more) for name, more in host.managed.items()]
            return ManagedAgent(folder, *entries, environ=environ, gpu=gpu)
        return AgentProcess(
            folder,
            "".join(self._entries(host)),
            environ=environ,
            gpu=gpu,
            discovery=host.discovery,
        )

    def _managed(self, host: str, name: str, more: Mapping[str, Any]) -> Managed:
        return Managed(
            name=name,
            model=self.model,
            port=self.port(host, name),
            environ={LIFETIME_VARIABLE: str(LIFETIME_SECONDS)},
            **more,
        )

    def _entries(self, host: Host) -> list[str]:
        """The lines of the configuration; JSON is YAML."""
        monitored = [
            {"name": name, "match": {"port": self.port(host.name, name)}, "probe": _PROBE, **more}
            for name, more in host.monitored.items()
        ]
        external = [
            {
                "name": name,
                "mode": "external",
                "url": f"http://127.0.0.1:{self.port(host.name, name)}",
                "probe": _PROBE,
            }
            for name in host.external
        ]
        return [f"  - {json.dumps(entry)}\n" for entry in (*monitored, *external)]
