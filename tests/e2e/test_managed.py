"""Managed servers as an operator has them: started, restarted, stopped, switched and handed over.

Each scenario has a server of its own. Some run beside each other: they wait nearly all of the time.
"""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.agent_process import wait_until
from tests.e2e.managed_scene import (
    Managed,
    ManagedAgent,
    Requests,
    complete,
    is_serving,
    wait_serving,
)
from tests.vllm.streaming_clients import SERVED_NAME
from vllm_agent.demo.launch import title, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON_SECONDS = 40.0
"""Nothing here takes longer, the machine may be busy."""

AT_ONCE = 6
"""Servers of one agent, and what runs at once: more would start too slowly on two cores."""

ALWAYS = "1000000"
QUICK_STOP = "1s"
NO_CRASHES: dict[str, int] = {}


@dataclass(frozen=True)
class Scenario:
    """What happens to one server; `settings` makes its entry from a folder of its own."""

    settings: Callable[[Path], dict[str, Any]]
    run: Callable[[ManagedAgent, str], None]


SCENARIOS: dict[str, Scenario] = {}

ALONE: dict[str, Callable[[Path, Path], None]] = {}
"""Those with an agent of their own, in a folder of their own; and the folder of the models."""


def scenario(
    settings: Callable[[Path], dict[str, Any]] | None = None, /, **fixed: Any
) -> Callable[[Callable[[ManagedAgent, str], None]], Callable[[ManagedAgent, str], None]]:
    """Makes the function a scenario of the shared agent, with a server of the same name."""

    def register(run: Callable[[ManagedAgent, str], None]) -> Callable[[ManagedAgent, str], None]:
        SCENARIOS[run.__name__] = Scenario(settings or (lambda _folder: fixed), run)
        return run

    return register


def alone(run: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """Makes the function a scenario with an agent of its own."""
    ALONE[run.__name__] = run
    return run


def crashes(view: dict[str, Any]) -> dict[str, int]:
    return {reason: count for reason, count in view["crashes"].items() if count}


def restarts(view: dict[str, Any]) -> dict[str, int]:
    return {initiator: count for initiator, count in view["restarts"].items() if count}


def failing(folder: Path, *failure: str, times: str = ALWAYS) -> tuple[str, ...]:
    """Flags of a stand-in that fails so many times, as the file `left` says."""
    left = folder / "left"
    left.write_text(times)
    # No vLLM ends so soon that nobody could have looked at it.
    return (*failure, "--load-seconds", "1", "--failures-left", str(left))


def models(agent: ManagedAgent) -> Path:
    return agent.folder.parent / "models"


@scenario(served_name=SERVED_NAME)
def is_started_with_the_agent(agent: ManagedAgent, name: str) -> None:
    view = agent.wait_running(name)
    assert (view["mode"], view["launches"], restarts(view)) == ("managed", 1, {})
    assert (view["managed"]["goal"], view["managed"]["attempts"]) == ("up", 1)
    assert view["desired_up"] is True
    main = agent.main_pid(name)
    assert os.getpgid(main) == main
    line = title(main)
    port = agent.entries[name].port
    for words in (
        f" serve {agent.entries[name].model} ",
        f"--port {port}",
        "--gpu-memory-utilization 0.9",
    ):
        assert words in line
    assert complete(port, SERVED_NAME)
    (log,) = agent.launch_logs(name)
    assert "Application startup complete." in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o640
    inputs = {Path(f"/proc/{pid}/fd/0").readlink() for pid in agent.pids(name)}
    assert inputs == {Path("/dev/null")}


@scenario()
def is_restarted_when_its_engine_died(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name, launches=1)
    before = set(agent.pids(name))
    agent.kill_part(name)
    wait_until(lambda: agent.state(name) == "crashed", "it is crashed")
    planned = agent.sample("server_next_restart_timestamp_seconds", server=name)
    assert planned is None or abs(planned - time.time()) < SOON_SECONDS
    view = agent.wait_running(name, launches=2)
    assert (crashes(view), restarts(view)) == ({"engine_died": 1}, {"agent": 1})
    assert view["restart_budget"]["remaining"] == 2
    assert not before & set(agent.pids(name))
    assert len(agent.launches_alive(name)) == 1
    wait_until(lambda: bool(agent.server(name)["last_ending"]["bundle"]), "its evidence is kept")
    bundle = agent.server(name)["last_ending"]["bundle"]
    assert Path(bundle).is_relative_to(agent.state_dir)
    assert Path(bundle).stat().st_size
    assert agent.sample("server_next_restart_timestamp_seconds", server=name) is None


@scenario(arguments=("--speed", "1"))
def is_counted_as_crashed_when_its_engine_died_and_it_did_not_end(
    agent: ManagedAgent, name: str
) -> None:
    """VLLM takes seconds to end without its engine: the agent stops it, which is no stop."""
    agent.wait_running(name, launches=1)
    agent.kill_part(name)
    view = agent.wait_running(name, launches=2)
    assert (crashes(view), restarts(view)) == ({"engine_died": 1}, {"agent": 1})
    assert agent.sample("server_last_crash_timestamp_seconds", server=name, reason="engine_died")


@scenario()
def leaves_no_orphans_when_its_main_process_was_killed(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name, launches=1)
    before = agent.pids(name)
    os.kill(agent.main_pid(name), signal.SIGKILL)
    view = agent.wait_running(name, launches=2)
    assert (crashes(view), restarts(view)) == ({"signal": 1}, {"agent": 1})
    assert not {*before} & {*agent.pids(name)}
    assert agent.sample("orphan_processes", server=name) in {None, 0}


@scenario(
    lambda folder: {
        "arguments": failing(folder, "--fail-load", "kv_cache_too_small"),
        "restart": {"max_restarts": 1},
    }
)
def is_given_up_at_the_limit_until_an_operator_starts_it(agent: ManagedAgent, name: str) -> None:
    view = agent.wait_view(name, "it is given up", {"managed.phase": "gave_up"})
    assert (view["state"], view["reason"]) == ("failed", "kv_cache_too_small")
    history = agent.get(f"/api/v1/servers/{name}/history")[2]
    assert (view["launches"], crashes(view)) == (2, {"kv_cache_too_small": 2}), history
    assert view["advice"]
    assert agent.sample("server_restart_limit_reached", server=name) == 1
    assert agent.sample("server_failure_reason", server=name, reason="kv_cache_too_small") == 1
    assert agent.sample("server_next_restart_timestamp_seconds", server=name) is None
    agent.wait_gone(name)
    (agent.folder / name / "left").write_text("0")
    agent.done(name, "start")
    view = agent.wait_running(name, launches=3)
    assert restarts(view) == {"agent": 1, "operator": 1}
    assert agent.sample("server_restart_limit_reached", server=name) == 0
    assert view["restart_budget"]["remaining"] == 1


@scenario(lambda folder: {"arguments": failing(folder, "--fail-load", "bad_arguments")})
def is_given_up_soon_where_no_restart_can_help(agent: ManagedAgent, name: str) -> None:
    view = agent.wait_view(name, "it is given up", {"managed.phase": "gave_up"})
    assert (view["state"], view["reason"], view["launches"]) == ("failed", "bad_arguments", 2)
    assert agent.sample("server_restart_limit_reached", server=name) == 0


@scenario(arguments=("--hang-load", "--orphan-while-loading"))
def stops_while_it_loads(agent: ManagedAgent, name: str) -> None:
    """It swallows the first SIGTERM, and leaves its engine behind after the second."""
    wait_until(lambda: bool(agent.pids(name, "VLLM::EngineCore")), "its engine loads")
    started = time.monotonic()
    view = agent.done(name, "stop")
    assert time.monotonic() - started < SOON_SECONDS + 5
    assert agent.pids(name) == []
    assert (view["state"], view["managed"]["goal"]) == ("stopped", "down")
    assert view["desired_up"] is False
    assert crashes(view) == NO_CRASHES
    assert view["managed"]["last_stop"]["is_forced"] is False


@scenario(arguments=("--ignore-sigterm",), stop_timeout=QUICK_STOP)
def is_killed_where_it_ignores_sigterm(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    view = agent.done(name, "stop")
    assert agent.pids(name) == []
    stop = view["managed"]["last_stop"]
    assert (stop["launch"], stop["is_forced"]) == (1, True)
    assert 1 <= stop["seconds"] < SOON_SECONDS
    assert (view["state"], crashes(view)) == ("stopped", NO_CRASHES)


@scenario()
def is_stopped_and_started_again(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    view = agent.done(name, "stop")
    assert agent.pids(name) == []
    assert (view["state"], view["managed"]["last_stop"]["is_forced"]) == ("stopped", False)
    assert agent.sample("server_desired_up", server=name) == 0
    agent.done(name, "stop")
    agent.done(name, "start")
    view = agent.wait_running(name, launches=2)
    assert (restarts(view), crashes(view)) == ({"operator": 1}, NO_CRASHES)
    agent.done(name, "restart")
    view = agent.wait_running(name, launches=3)
    assert (restarts(view), crashes(view)) == ({"operator": 2}, NO_CRASHES)
    assert view["restart_budget"]["remaining"] == 3
    assert len(agent.launches_alive(name)) == 1


@scenario()
def serves_another_model(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    other = str(models(agent) / "other")
    done = agent.cli("set-model", name, other)
    assert done.returncode == 0, done
    view = agent.wait_running(name, launches=2)
    assert (view["model_name"], view["managed"]["model"]) == (other, other)
    assert view["managed"]["model_before"] is None
    assert (restarts(view), crashes(view)) == ({"operator": 1}, NO_CRASHES)
    assert complete(agent.entries[name].port, other)


@scenario(
    lambda folder: {
        "arguments": ("--known-models", str(folder.parents[1] / "models" / "tiny")),
    }
)
def offers_the_model_before_when_the_new_one_fails(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    tiny, other = (str(models(agent) / one) for one in ("tiny", "other"))
    failed = agent.cli("set-model", name, other)
    told = failed.stdout + failed.stderr
    assert failed.returncode == 1, told
    assert "model_not_found" in told
    assert f"set-model {name} {tiny}" in told
    view = agent.wait_view(name, "it is given up", {"managed.phase": "gave_up"})
    assert (view["managed"]["model"], view["managed"]["model_before"]) == (other, tiny)
    assert view["state"] == "failed"
    back = agent.cli("set-model", name, tiny)
    assert back.returncode == 0, back
    assert agent.wait_running(name)["model_name"] == tiny


@scenario()
def is_left_alone_for_a_model_that_is_not_there(agent: ManagedAgent, name: str) -> None:
    before = agent.wait_running(name)
    failed = agent.cli("set-model", name, str(models(agent) / "missing"))
    told = failed.stdout + failed.stderr
    assert failed.returncode == 1, told
    assert "was left as it is (model_not_found)" in told
    assert str(models(agent) / "missing") in told.splitlines()[-1]
    view = agent.server(name)
    assert (view["pid"], view["state"]) == (before["pid"], "running")
    assert view["managed"]["model"] == before["managed"]["model"]


@scenario()
def is_made_healthy(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    started = time.monotonic()
    assert agent.done(name, "ensure-healthy")["state"] == "running"
    assert time.monotonic() - started < 1
    agent.done(name, "stop")
    view = agent.done(name, "ensure-healthy", timeout_seconds=SOON_SECONDS)
    assert (view["state"], view["launches"]) == ("running", 2)


@scenario(lambda folder: {"arguments": failing(folder, "--fail-load", "bad_arguments")})
def says_why_it_cannot_be_made_healthy(agent: ManagedAgent, name: str) -> None:
    agent.wait_view(name, "it is given up", {"managed.phase": "gave_up"})
    status, answer = agent.ask(name, "ensure-healthy", timeout_seconds=SOON_SECONDS)
    assert (status, answer["error"]["code"]) == (409, "start_failed")
    assert "bad_arguments" in answer["error"]["message"]
    assert answer["error"]["hint"]


@scenario()
def is_left_alone_in_maintenance(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    agent.done(name, "maintenance", on=True)
    assert agent.sample("server_desired_up", server=name) == 0
    agent.kill_part(name)
    agent.wait_view(name, "it is down", {"managed.next_restart_timestamp_seconds": None})
    agent.wait_gone(name)
    time.sleep(3)  # that it is not restarted has no event
    assert agent.server(name)["launches"] == 1


@scenario(restart={"dry_run": True})
def is_not_restarted_in_a_dry_run(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    agent.kill_part(name)
    wait_until(lambda: agent.state(name) == "crashed", "it is crashed")
    wait_until(lambda: "dry_run" in agent.log() or "dry run" in agent.log(), "it is told")
    agent.wait_gone(name)
    time.sleep(3)  # that it is not restarted has no event
    view = agent.server(name)
    assert (view["launches"], view["managed"]["is_dry_run"]) == (1, True)
    agent.done(name, "start")
    agent.wait_running(name, launches=2)


@scenario(
    lambda folder: {
        "arguments": failing(folder, "--health-status", "503", "--fault-after", "1", times="1")
    }
)
def is_restarted_when_it_is_unhealthy(agent: ManagedAgent, name: str) -> None:
    view = agent.wait_running(name, launches=2)
    assert restarts(view) == {"agent": 1}
    assert "unhealthy" in " ".join(view["last_ending"]["evidence"])
    assert len(agent.launches_alive(name)) == 1


@scenario()
def answers_everyone_who_asks_at_once(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    wishes = ["restart", "stop", "start", "restart", "stop", "start"]
    with ThreadPoolExecutor(len(wishes)) as pool:
        answers = list(pool.map(lambda wish: agent.ask(name, wish), wishes))
    for status, answer in answers:
        assert status in {200, 409}, answer
        assert status == 200 or answer["error"]["code"] == "superseded", answer
    assert 200 in {status for status, _ in answers}
    agent.done(name, "start")
    agent.wait_running(name)
    assert len(agent.launches_alive(name)) == 1


@scenario()
def stays_stopped_when_somebody_else_stopped_it(agent: ManagedAgent, name: str) -> None:
    agent.wait_running(name)
    os.kill(agent.main_pid(name), signal.SIGTERM)
    view = agent.wait_view(name, "it is stopped", {"state": "stopped"})
    assert crashes(view) == NO_CRASHES
    agent.wait_gone(name)
    time.sleep(3)  # that it is not restarted has no event
    assert agent.server(name)["launches"] == 1


@alone
def serves_on_when_the_agent_is_killed(folder: Path, models: Path) -> None:
    serves_on(folder, models, signal.SIGKILL)


@alone
def serves_on_when_the_agent_ends(folder: Path, models: Path) -> None:
    serves_on(folder, models, signal.SIGTERM)


def serves_on(folder: Path, models: Path, number: signal.Signals) -> None:
    """No request fails, and the next agent has it again: as the same launch, to stop and start."""
    name = f"outlives-{number.name.lower()}"
    server = Managed(name=name, model=models / "tiny")
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        main, before = agent.main_pid(name), agent.server(name)
        with Requests(server.port, str(server.model)) as requests:
            requests.wait_more()
            agent.stop(number)
            requests.wait_more()
            agent.start()
            view = agent.wait_running(name)
            requests.wait_more()
        assert requests.failures == [], agent.log()
        assert (view["launches"], restarts(view), crashes(view)) == (1, {}, NO_CRASHES)
        assert view["process_start_time_seconds"] == before["process_start_time_seconds"]
        assert agent.main_pid(name) == main
        # Its exit is told to nobody who could be asked: the new agent is not its parent.
        os.kill(main, signal.SIGKILL)
        view = agent.wait_running(name, launches=2)
        assert (crashes(view), restarts(view)) == ({"signal": 1}, {"agent": 1})
        agent.done(name, "stop")
        assert agent.pids(name) == []
        agent.stop()
        agent.start()
        view = agent.wait_view(name, "it stays stopped", {"state": "stopped"})
        assert (view["managed"]["goal"], view["launches"]) == ("down", 2)
        assert agent.pids(name) == []


@alone
def goes_with_the_agent(folder: Path, models: Path) -> None:
    name = "goes-along"
    server = Managed(name=name, model=models / "tiny", stop_on_exit=True)
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        status, _ = agent.stop()
        assert status == 0
        assert agent.pids(name) == []
        agent.start()
        view = agent.wait_running(name, launches=2)
        assert crashes(view) == NO_CRASHES
        assert view["restart_budget"]["remaining"] == 3


@alone
def ends_while_no_agent_is_there(folder: Path, models: Path) -> None:
    """What is left of it is cleared, and it is started again."""
    name = "ends-alone"
    server = Managed(name=name, model=models / "tiny")
    with ManagedAgent(folder, server) as agent:
        agent.wait_running(name)
        agent.kill()
        before = set(agent.pids(name))
        os.kill(agent.main_pid(name), signal.SIGKILL)
        agent.start()
        agent.wait_running(name, launches=2)
        assert not before & set(agent.pids(name))
        assert len(agent.launches_alive(name)) == 1


@alone
def is_touched_by_a_reload_only_where_it_changed(folder: Path, models: Path) -> None:
    tiny, other = (models / name for name in ("tiny", "other"))
    same, changed, gone = (Managed(name=f"reload-{n}", model=tiny) for n in ("same", "new", "gone"))
    with ManagedAgent(folder, same, changed, gone) as agent:
        for one in (same, changed, gone):
            agent.wait_running(one.name)
        pids = {one.name: agent.main_pid(one.name) for one in (same, changed, gone)}
        agent.configure(same, replace(changed, model=other))
        status, answer = agent.post("/-/reload", {})
        assert status == 200, answer
        view = agent.wait_running(changed.name, launches=2)
        assert view["model_name"] == str(other)
        assert crashes(view) == NO_CRASHES
        assert agent.main_pid(same.name) == pids[same.name]
        assert agent.server(same.name)["launches"] == 1
        assert agent.main_pid(changed.name) != pids[changed.name]
        wrong = folder / "config.yml"
        wrong.write_text("servers: [{name: a, mode: managed}]\n")
        status, answer = agent.post("/-/reload", {})
        assert status >= 500, answer
        assert "model" in answer["error"]["message"]
        assert is_serving(same.port)
        wait_serving(changed.port)
        # Nobody would restart what is managed no more, and its port could not be used again.
        assert agent.pids(gone.name) == []
        assert "removed from the configuration" in agent.log()
        agent.configure(same, replace(changed, model=other), gone)
        assert agent.post("/-/reload", {})[0] == 200
        view = agent.wait_running(gone.name, launches=2)
        assert (restarts(view), crashes(view)) == ({"agent": 1}, NO_CRASHES)
        assert agent.main_pid(same.name) == pids[same.name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    folder = tmp_path_factory.mktemp("managed")
    for name in ("tiny", "other"):
        write_checkpoint(folder / "models" / name, shards=1)
    return folder


@pytest.fixture(scope="module")
def futures(folder: Path) -> Iterator[dict[str, Future[None]]]:
    """What comes of each scenario."""
    futures: dict[str, Future[None]] = {name: Future() for name in (*SCENARIOS, *ALONE)}
    names = [*SCENARIOS]
    groups = [names[at : at + AT_ONCE] for at in range(0, len(names), AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = [pool.submit(_run_groups, folder, groups, futures)]
        # The path of a socket has 107 characters at most.
        begun += [
            pool.submit(_keep, futures[name], run, folder / str(number), folder / "models")
            for number, (name, run) in enumerate(ALONE.items())
        ]
        yield futures
        pool.shutdown(cancel_futures=True)
    for one in begun:
        if not one.cancelled():
            one.result()


def _run_groups(folder: Path, groups: list[list[str]], futures: dict[str, Future[None]]) -> None:
    for number, group in enumerate(groups):
        of_group = folder / f"group{number}"
        servers = []
        for name in group:
            (of_group / name).mkdir(parents=True)
            settings = SCENARIOS[name].settings(of_group / name)
            servers.append(Managed(name=name, model=folder / "models" / "tiny", **settings))
        try:
            with ManagedAgent(of_group, *servers) as agent, ThreadPoolExecutor(AT_ONCE) as pool:
                for name in group:
                    pool.submit(_keep, futures[name], SCENARIOS[name].run, agent, name)
        except BaseException as error:
            for name in group:
                if not futures[name].done():
                    futures[name].set_exception(error)
            raise


def _keep(future: Future[None], run: Callable[..., None], *arguments: object) -> None:
    """Runs a scenario; the future holds what came of it."""
    try:
        run(*arguments)
    except BaseException as error:  # noqa: BLE001 - a test raises it
        future.set_exception(error)
    else:
        future.set_result(None)


@pytest.mark.parametrize("name", [*SCENARIOS, *ALONE])
def test_a_managed_server(name: str, futures: dict[str, Future[None]]) -> None:
    futures[name].result()
