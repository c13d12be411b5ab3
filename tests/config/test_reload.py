"""The configuration read by a process that is started afresh: what it gives, and how it ends."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vllm_agent.config import apart, reload
from vllm_agent.config.apart import NoConfigError
from vllm_agent.config.load import load
from vllm_agent.config.problem import ConfigError
from vllm_agent.config.reload import load_afresh

if TYPE_CHECKING:
    from collections.abc import Callable

TESTDATA = Path(__file__).parent / "testdata"


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def read_instead(monkeypatch) -> Callable[[str], None]:
    """What the other process does instead of reading."""
    return lambda program: monkeypatch.setattr(reload, "READER", (sys.executable, "-c", program))


@pytest.fixture
def hung(tmp_path: Path) -> Path:
    """A file whose text nobody writes."""
    path = tmp_path / "config.yml"
    os.mkfifo(path)
    return path


async def opened(path: Path) -> int:
    """Waits until the other process reads, and gives the end of the FIFO that it waits for."""
    return await asyncio.to_thread(os.open, path, os.O_WRONLY)


@pytest.mark.parametrize("name", ["valid-external.yml", "valid-managed.yml"])
async def test_it_gives_what_the_file_says(name: str):
    assert await load_afresh(TESTDATA / name, {}) == load(TESTDATA / name, {}).plain()


async def test_no_file_is_a_configuration_too():
    assert await load_afresh(None, {}) == load(None, {}).plain()


async def test_it_raises_the_same_problems():
    path = TESTDATA / "invalid-managed.yml"
    with pytest.raises(ConfigError) as here:
        load(path, {})
    with pytest.raises(ConfigError) as there:
        await load_afresh(path, {})

    assert there.value.problems == here.value.problems


async def test_it_goes_by_the_environment_it_is_given(monkeypatch):
    monkeypatch.setenv("VLLM_MODEL", "org/another")
    environ = {"VLLM_MODEL": "org/\udcff"}
    path = TESTDATA / "valid-managed.yml"

    with pytest.raises(ConfigError, match="VLLM_MODEL: a model is 1 to 512 printable"):
        await load_afresh(path, environ)
    assert (await load_afresh(path, {})).servers[0].model == load(path, {}).servers[0].model


async def test_a_relative_path_begins_where_the_agent_is(monkeypatch):
    monkeypatch.chdir(TESTDATA)

    path = Path("valid-external.yml")
    assert await load_afresh(path, {}) == load(path, {}).plain()


async def test_no_module_beside_the_agent_is_imported(monkeypatch, tmp_path: Path):
    (tmp_path / "yaml.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)

    assert await load_afresh(None, {}) == load(None, {}).plain()


async def test_the_loop_is_not_held_up(hung: Path):
    task = asyncio.create_task(load_afresh(hung, {}))
    os.close(await opened(hung))

    assert (await task).servers == ()


async def test_it_may_be_asked_twice_at_a_time_and_beside_threads():
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        first, second = await asyncio.gather(load_afresh(None, {}), load_afresh(None, {}))
    finally:
        end.set()
        thread.join()

    assert first == second


async def test_it_is_killed_when_it_is_late(hung: Path, monkeypatch):
    monkeypatch.setattr(reload, "RELOAD_SECONDS", 0.01)

    with pytest.raises(NoConfigError, match=r"within 0.01 s, maybe a file .* check-config"):
        await load_afresh(hung, {})


async def test_it_is_killed_when_nobody_waits_any_more(hung: Path):
    task = asyncio.create_task(load_afresh(hung, {}))
    fd = await opened(hung)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(BrokenPipeError):
        os.write(fd, b"x")
    os.close(fd)


async def test_one_that_is_killed_is_told(read_instead):
    read_instead(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")

    with pytest.raises(NoConfigError, match=r"was killed: if memory ran out .* 64 MiB more"):
        await load_afresh(None, {})


@pytest.mark.parametrize(
    "program",
    [
        "",
        "raise ImportError",
        "import sys; sys.stdin.buffer.close(); sys.stdout.buffer.close()",
        "from vllm_agent import __version__; print(__version__)",
        "from vllm_agent import __version__; print(__version__, 'half an answer', sep='\\n')",
    ],
)
async def test_one_that_ends_is_told(read_instead, program: str):
    read_instead(program)

    with pytest.raises(NoConfigError, match=r"ended without an answer: vllm-agent check-config"):
        await load_afresh(None, {})


async def test_another_version_is_told(read_instead):
    read_instead("print('0.0.0'); print('what it wrote')")

    with pytest.raises(NoConfigError, match=r"version '0.0.0' was installed .* restart the agent"):
        await load_afresh(None, {})


async def test_values_of_another_version_are_told(read_instead):
    """The version stays the same where files are replaced without an installation."""
    content = pickle.dumps(apart.configuration).replace(b"configuration", b"confaguration")
    read_instead(
        "import sys; from vllm_agent import __version__\n"
        f"sys.stdout.buffer.write(__version__.encode() + b'\\n' + {content!r})"
    )

    with pytest.raises(NoConfigError, match="restart the agent"):
        await load_afresh(None, {})


async def test_a_longer_answer_is_not_kept(monkeypatch):
    monkeypatch.setattr(apart, "MAX_ANSWER_BYTES", 64)

    with pytest.raises(NoConfigError, match="check-config"):
        await load_afresh(None, {})


async def test_a_fault_of_it_is_a_fault_here(read_instead):
    read_instead(
        "import vllm_agent.config.load, vllm_agent.config.fresh_reader as reader\n"
        "vllm_agent.config.load.load = None\n"
        "reader.main()"
    )

    with pytest.raises(RuntimeError, match="TypeError: 'NoneType' object is not callable"):
        await load_afresh(None, {})


async def test_what_is_printed_is_no_part_of_the_answer(read_instead):
    read_instead(
        "import vllm_agent.config.load as load, vllm_agent.config.fresh_reader as reader\n"
        "real = load.load\n"
        "def speak(*arguments): print('mind this'); return real(*arguments)\n"
        "load.load = speak; reader.main()"
    )

    assert await load_afresh(None, {}) == load(None, {}).plain()


async def test_one_that_cannot_be_started_is_told(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(reload, "READER", (str(tmp_path / "python"),))

    with pytest.raises(NoConfigError, match="No such file or directory"):
        await load_afresh(None, {})


def uvloop() -> asyncio.AbstractEventLoop:
    """The loop of the agent."""
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop])
def test_no_process_is_left_wherever_it_is_cancelled(loop_factory, hung: Path):
    async def cancel() -> None:
        for steps in range(12):
            task = asyncio.create_task(load_afresh(None, {}))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        task = asyncio.create_task(load_afresh(hung, {}))
        os.close(await opened(hung))
        assert (await task).servers == ()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(cancel())
