"""A new configuration touches the servers that it changes, and no other."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.roster.test_roster import FakeLocalServer, FakeStore, Scene, monitored, now, watching
from tests.runner.virtual_time import run_virtually
from vllm_agent import operations
from vllm_agent import roster as roster_module
from vllm_agent.config.apart import NoConfigError
from vllm_agent.config.managed import ManagedConfig
from vllm_agent.config.model import Config, ServerConfig
from vllm_agent.config.problem import ConfigError, Problem
from vllm_agent.expose.operations import CannotReloadError, CannotServeError, NotManagedError
from vllm_agent.host.launching import launcher as launcher_module
from vllm_agent.host.launching.refusal import Refusal
from vllm_agent.lifecycle.ending import EndingEvidence
from vllm_agent.lifecycle.events import Cleared, EndBegan, EndSettled
from vllm_agent.lifecycle.management import Wish
from vllm_agent.lifecycle.operations import Outcome
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.lifecycle.states import LifecycleMode, Phase, ServerState
from vllm_agent.observations import ProcessId, Sighting, VllmCommand
from vllm_agent.operations import Reload, RosterOperations

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_agent.lifecycle.events import Event
    from vllm_agent.roster import Roster


@dataclass
class FakeHost:
    """What runs, by server: launchers come and go with the configuration, launches do not."""

    alive: dict[str, Sighting] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    pids: int = 100


class FakeLauncher:
    host = FakeHost()

    def __init__(self, server: ServerConfig, *, launched: Callable[[Sighting], None], **_: Any):
        self.name = server.name
        self.launched = launched
        self.tell: Callable[[Event], None] = lambda _: None

    def say(self, what: str) -> None:
        self.host.done.append(f"{what} {self.name}")

    async def adopt(self, remembered: ProcessId | None) -> bool:
        del remembered
        if self.name in self.host.alive:
            self.launched(self.host.alive[self.name])
        return self.name in self.host.alive

    def has_marked(self, environ: bytes) -> bool:
        return environ == self.name.encode()

    def start(self, attempt: int, model: str | None, tell: Callable[[Event], None]) -> None:
        del attempt
        self.say(f"start {model} of" if model else "start")
        self.tell = tell
        self.host.pids += 1
        pid = self.host.pids
        found = Sighting(
            process=ProcessId("boot", pid, pid),
            start_seconds=now().unix_seconds,
            command=VllmCommand(model="tiny"),
            uid=0,
            session=pid,
        )
        self.host.alive[self.name] = found
        self.launched(found)

    def terminate(self, process: ProcessId) -> None:
        self.say("stop")
        self.host.alive.pop(self.name)
        owner = self.owner()
        owner(EndBegan(process))
        owner(EndSettled(process, EndingEvidence()))

    def kill_all(self, process: ProcessId, tell: Callable[[Event], None]) -> None:
        tell(Cleared(process))

    def owner(self) -> Callable[[Event], None]:
        assert current is not None
        return current.runner(self.name).tell

    async def why_not(self, model: str) -> Refusal | None:
        missing = Refusal(Reason.MODEL_NOT_FOUND, f"{model} is not there")
        return missing if model == "org/missing" else None

    async def settled(self) -> None:
        pass

    def close(self) -> None:
        self.say("close")

    def keep_evidence(self, *_: object) -> None:
        pass

    def cancel(self) -> None:
        pass


current: Roster | None = None


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr(roster_module, "LocalServer", FakeLocalServer)
    monkeypatch.setattr(launcher_module, "ManagedLauncher", FakeLauncher)
    FakeLauncher.host = FakeHost()
    return FakeLauncher.host


def managed(name: str, **changes: Any) -> ServerConfig:
    values: dict[str, Any] = {"name": name, "mode": LifecycleMode.MANAGED, "model": "tiny"}
    values |= {"url": f"http://127.0.0.1:{8000 + ord(name[0])}"} | changes
    return ServerConfig(**values)


async def settle(scene: Scene) -> None:
    global current  # noqa: PLW0603 - the fake launchers find their owner by it
    current = scene.roster
    await asyncio.sleep(5.0)


def phase(scene: Scene, name: str) -> Phase:
    return scene.roster.runner(name).snapshot.life.phase


async def applied(scene: Scene, *servers: ServerConfig) -> None:
    await scene.roster.apply(Config(servers=servers))
    await settle(scene)


def test_what_is_not_changed_is_not_touched(host: FakeHost) -> None:
    async def main() -> None:
        async with watching(managed("a"), managed("b"), monitored("c", port=1)) as scene:
            await settle(scene)
            before = [scene.roster.runner(name) for name in "abc"]
            host.done.clear()
            await applied(scene, managed("a"), managed("b"), monitored("c", port=1))
            assert [scene.roster.runner(name) for name in "abc"] == before
            assert host.done == []

    run_virtually(main())


def test_other_arguments_start_that_server_again_and_no_other(host: FakeHost) -> None:
    async def main() -> None:
        async with watching(managed("a"), managed("b")) as scene:
            await settle(scene)
            other = scene.roster.runner("b")
            host.done.clear()
            changed = managed("a", managed=ManagedConfig(args=("--max-model-len", "9")))
            await applied(scene, changed, managed("b"))
            assert host.done == ["close a", "stop a", "start a"]
            assert scene.roster.runner("b") is other
            assert scene.launches("a") == 2

    run_virtually(main())


def test_another_model_of_the_file_wins_over_the_one_that_was_chosen(host: FakeHost) -> None:
    async def main() -> None:
        async with watching(managed("a")) as scene:
            await settle(scene)
            await scene.roster.runner("a").ask(Wish.RESTART, "org/chosen")
            host.done.clear()
            await applied(scene, managed("a", model="org/new"))
            assert host.done == ["close a", "stop a", "start a"]

    run_virtually(main())


def test_another_interval_adopts_what_runs(host: FakeHost) -> None:
    async def main() -> None:
        async with watching(managed("a")) as scene:
            await settle(scene)
            host.done.clear()
            await applied(scene, managed("a", probe={"interval": "1s"}))
            assert host.done == ["close a"]
            assert scene.launches("a") == 1
            assert scene.state("a") is ServerState.STARTING

    run_virtually(main())


def test_other_arguments_keep_the_model_that_was_chosen(host: FakeHost) -> None:
    async def main() -> None:
        async with watching(managed("a")) as scene:
            await settle(scene)
            await scene.roster.runner("a").ask(Wish.RESTART, "org/chosen")
            host.done.clear()
            await applied(scene, managed("a", managed=ManagedConfig(airgapped=True)))
            assert host.done == ["close a", "stop a", "start org/chosen of a"]

    run_virtually(main())


def test_one_that_is_down_on_request_stays_down(host: FakeHost) -> None:
    async def main() -> None:
        async with watching(managed("a")) as scene:
            await settle(scene)
            await scene.roster.runner("a").ask(Wish.STOP)
            host.done.clear()
            await applied(scene, managed("a", model="org/new"))
            assert host.done == ["close a"]
            assert scene.state("a") is ServerState.STOPPED

    run_virtually(main())


def test_one_that_leaves_the_file_is_stopped_and_another_mode_leaves_it_running(
    host: FakeHost,
) -> None:
    async def main() -> None:
        async with watching(managed("a"), managed("b")) as scene:
            await settle(scene)
            host.done.clear()
            await applied(scene, monitored("b", port=1))
            assert host.done == ["stop a", "close a", "close b"]
            assert list(host.alive) == ["b"]
            assert scene.names == ["b"]

    run_virtually(main())


def test_a_new_one_is_started(host: FakeHost) -> None:
    async def main() -> None:
        async with watching() as scene:
            await applied(scene, managed("a"))
            assert host.done == ["start a"]

    run_virtually(main())


def test_the_end_of_the_agent_takes_along_what_is_to_end_with_it(host: FakeHost) -> None:
    async def main() -> None:
        ends = managed("b", managed=ManagedConfig(stop_on_exit=True))
        async with watching(managed("a"), ends) as scene:
            await settle(scene)
        assert list(host.alive) == ["a"]

    run_virtually(main())


def test_processes_of_a_managed_launch_are_no_servers_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with watching(managed("a")) as scene:
            await settle(scene)
            stranger = Sighting(
                process=ProcessId("boot", 7, 7),
                start_seconds=0.0,
                command=VllmCommand(model="tiny"),
                uid=0,
                session=7,
            )
            monkeypatch.setattr(roster_module, "read_environ", lambda *_: b"a")
            scene.roster.found(stranger)
            assert scene.names == ["a"]
            monkeypatch.setattr(roster_module, "read_environ", lambda *_: None)
            scene.roster.found(stranger)
            assert len(list(scene.roster.runners)) == 2

    run_virtually(main())


def test_the_first_look_says_nothing_of_a_server_whose_launcher_still_looks(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would say of one that lives is that it is gone, and that would be killed."""
    found = asyncio.Event()
    adopt = FakeLauncher.adopt

    async def slowly(self: FakeLauncher, remembered: ProcessId | None) -> bool:
        await found.wait()
        return await adopt(self, remembered)

    monkeypatch.setattr(FakeLauncher, "adopt", slowly)

    async def main() -> None:
        async with watching(managed("a"), monitored("c", port=1)) as scene:
            await settle(scene)
            scene.roster.first_look_over()
            await settle(scene)
            assert phase(scene, "a") is Phase.UNOBSERVED
            assert phase(scene, "c") is Phase.ABSENT
            found.set()
            await settle(scene)
            assert host.done == ["start a"]

    run_virtually(main())


# Operators.


def operate(scene: Scene, reload: Reload | None = None) -> RosterOperations:
    return RosterOperations(scene.roster, cast("Reload", reload))


def reloading(scene: Scene, told_again: Callable[[], None] = lambda: None) -> Reload:
    return Reload(
        Config(),
        None,
        {},
        roster=scene.roster,
        publication=scene.publication,
        clock=now,
        told_again=told_again,
    )


def test_only_a_managed_server_is_started_and_stopped() -> None:
    async def main() -> None:
        async with watching(managed("a"), monitored("c", port=1)) as scene:
            await settle(scene)
            answer = await operate(scene).ask("a", Wish.STOP, None)
            assert answer.outcome is Outcome.DONE
            with pytest.raises(CannotServeError, match="is not there") as refused:
                await operate(scene).ask("a", Wish.RESTART, "org/missing")
            assert refused.value.reason is Reason.MODEL_NOT_FOUND
            assert scene.state("a") is ServerState.STOPPED
            with pytest.raises(NotManagedError, match="monitored"):
                await operate(scene).ask("c", Wish.STOP, None)
            with pytest.raises(KeyError):
                await operate(scene).ask("nobody", Wish.STOP, None)

    run_virtually(main())


def test_a_configuration_that_cannot_be_used_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost
) -> None:
    problem: Exception = ConfigError((Problem("c.yml", 3, "servers", "is wrong"),))

    async def load(*_: object) -> Config:
        raise problem

    monkeypatch.setattr(operations, "load_afresh", load)

    async def main() -> None:
        nonlocal problem
        async with watching(managed("a")) as scene:
            await settle(scene)
            host.done.clear()
            told: list[str] = []
            reload = reloading(scene, lambda: told.append("again"))
            with pytest.raises(CannotReloadError, match=r"c\.yml:3"):
                await operate(scene, reload).reload()
            assert not scene.publication.current().is_config_load_successful
            problem = NoConfigError("no process")
            with pytest.raises(CannotReloadError, match="no process"):
                await operate(scene, reload).reload()
            assert host.done == []
            assert told == []

            async def works(*_: object) -> Config:
                return Config(servers=(managed("b"),))

            monkeypatch.setattr(operations, "load_afresh", works)
            await operate(scene, reload).reload()
            snapshot = scene.publication.current()
            assert snapshot.is_config_load_successful
            assert snapshot.config_load_unix_seconds == now().unix_seconds
            assert told == ["again"]
            assert [runner.snapshot.name for runner in scene.roster.runners] == ["b"]

    run_virtually(main())


def test_what_a_new_configuration_ignores_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def load(*_: object) -> Config:
        return Config(warnings=("x.yml: one thing", "x.yml: another"))

    monkeypatch.setattr(operations, "load_afresh", load)

    async def main() -> None:
        async with watching() as scene:
            await reloading(scene).now()

    run_virtually(main())
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [vars(record)["detail"] for record in warnings] == ["x.yml: one thing", "x.yml: another"]


def test_reloads_at_once_follow_each_other_and_the_last_one_holds(
    monkeypatch: pytest.MonkeyPatch, host: FakeHost
) -> None:
    files: list[Config | Exception] = [
        Config(servers=(managed("a", managed=ManagedConfig(args=("--seed", "1"))), managed("b"))),
        ConfigError((Problem("c.yml", 3, "servers", "is wrong"),)),
        Config(servers=(managed("a", managed=ManagedConfig(args=("--seed", "2"))),)),
    ]
    under_way = 0

    async def load(*_: object) -> Config:
        nonlocal under_way
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(1.0)
        under_way -= 1
        config = files.pop(0)
        if isinstance(config, Exception):
            raise config
        return config

    monkeypatch.setattr(operations, "load_afresh", load)

    async def main() -> None:
        async with watching(managed("a")) as scene:
            await settle(scene)
            reload = reloading(scene)
            host.done.clear()
            told = await asyncio.gather(*(reload.now() for _ in range(3)), return_exceptions=True)
            await settle(scene)
            assert [type(one) for one in told] == [type(None), CannotReloadError, type(None)]
            assert scene.names == list(host.alive) == ["a"]
            assert host.done.count("start a") == 2
            assert host.done.count("start b") == host.done.count("stop b") == 1
            assert scene.launches("a") == 3
            assert scene.publication.current().is_config_load_successful

    run_virtually(main())


def test_memories_tell_what_is_wanted(host: FakeHost) -> None:
    async def main() -> None:
        store = FakeStore()
        async with watching(managed("a"), store=store) as scene:
            await settle(scene)
            await scene.roster.runner("a").ask(Wish.STOP)
        host.done.clear()
        async with watching(managed("a"), store=store) as scene:
            await settle(scene)
            assert host.done == []

    run_virtually(main())
