"""The configuration read by a fork: the same values, the same errors, and a fork that fails."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import pytest

from vllm_agent.config import apart
from vllm_agent.config.apart import NoConfigError, load_apart
from vllm_agent.config.load import load
from vllm_agent.config.problem import ConfigError

TESTDATA = Path(__file__).parent / "testdata"


@pytest.fixture(autouse=True)
def _no_process_is_left(monkeypatch):
    forked = []
    real = os.fork

    def fork() -> int:
        forked.append(real())
        return forked[-1]

    monkeypatch.setattr(os, "fork", fork)
    yield
    for pid in forked:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


@pytest.fixture
def load_instead(monkeypatch):
    """What the fork does instead of reading."""
    return lambda instead: monkeypatch.setattr("vllm_agent.config.load.load", instead)


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20
    )


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("valid-*.yml")), ids=lambda path: path.stem)
def test_it_gives_what_the_file_says(path: Path):
    assert load_apart(path, {}) == load(path, {}).plain()


def test_no_file_is_a_configuration_too():
    assert load_apart(None, {}) == load(None, {}).plain()


@pytest.mark.parametrize("path", sorted(TESTDATA.glob("invalid-*.yml")), ids=lambda path: path.stem)
def test_it_raises_the_same_problems(path: Path):
    with pytest.raises(ConfigError) as here:
        load(path, {})
    with pytest.raises(ConfigError) as there:
        load_apart(path, {})

    assert there.value.problems == here.value.problems
    assert str(there.value) == str(here.value)


def test_the_process_that_asks_imports_neither_pydantic_nor_yaml():
    path = TESTDATA / "valid-external.yml"
    result = run_python(
        "import sys; from pathlib import Path; from vllm_agent.config.apart import load_apart\n"
        f"print(load_apart(Path({str(path)!r}), {{}}).servers[0].url)\n"
        "print([name for name in ('pydantic', 'yaml') if name in sys.modules])"
    )

    assert result.stdout == "http://127.0.0.1:8000\n[]\n"


def test_other_work_is_done_meanwhile(tmp_path: Path):
    path = tmp_path / "config.yml"
    os.mkfifo(path)

    # The fork waits for the text that only this writes.
    config = load_apart(path, {}, lambda: path.write_text("discovery: {enabled: false}"))

    assert not config.discovery.enabled


def test_the_fork_ends_where_the_other_work_fails(tmp_path: Path):
    path = tmp_path / "config.yml"
    os.mkfifo(path)

    def fail() -> NoReturn:
        raise ImportError("broken")

    with pytest.raises(ImportError, match="broken"):
        load_apart(path, {}, fail)


def test_a_fork_that_is_killed_is_told(load_instead):
    load_instead(lambda *_: os.kill(os.getpid(), signal.SIGKILL))

    with pytest.raises(NoConfigError, match=r"was killed: if memory ran out .* 64 MiB more"):
        load_apart(None, {})


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda *_: os._exit(0), "ended without an answer: vllm-agent check-config"),
        (lambda *_: os.kill(os.getpid(), signal.SIGTERM), "by signal 15: vllm-agent check-config"),
    ],
)
def test_a_fork_that_ends_is_told(load_instead, end, text: str):
    load_instead(end)

    with pytest.raises(NoConfigError, match=text):
        load_apart(None, {})


def test_half_an_answer_is_none(monkeypatch):
    whole = pickle.dumps(load(None, {}).plain())
    monkeypatch.setattr(apart, "outcome", lambda *_: whole[: len(whole) // 2])

    with pytest.raises(NoConfigError, match="ended without an answer"):
        load_apart(None, {})


def test_a_fault_of_the_fork_is_a_fault_here(load_instead):
    def fail(*_: object) -> NoReturn:
        raise KeyError("lost")

    load_instead(fail)

    with pytest.raises(RuntimeError, match="KeyError: 'lost'") as caught:
        load_apart(None, {})
    assert ", in fail\n" in "".join(traceback.format_exception(caught.value))


def test_a_longer_answer_is_not_kept(monkeypatch):
    path = TESTDATA / "valid-external.yml"
    size = len(pickle.dumps(load(path, {}).plain()))
    monkeypatch.setattr(apart, "MAX_ANSWER_BYTES", size)
    load_apart(path, {})
    monkeypatch.setattr(apart, "MAX_ANSWER_BYTES", size - 1)

    with pytest.raises(NoConfigError, match="check-config"):
        load_apart(path, {})


def test_a_fork_that_cannot_be_made_is_told(monkeypatch):
    def fork() -> NoReturn:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)

    with pytest.raises(NoConfigError, match="Resource temporarily unavailable: let the agent have"):
        load_apart(None, {})


def test_what_was_written_before_is_written_once():
    result = run_python(
        "from vllm_agent.config.apart import load_apart\n"
        "import atexit; atexit.register(print, 'end')\n"
        "print('begin'); load_apart(None, {})"
    )

    assert (result.stdout, result.stderr) == ("begin\nend\n", "")


def test_a_warning_is_told_once():
    result = run_python(
        "import warnings; from vllm_agent.config import apart, load\n"
        "real = load.load\n"
        "def warn(*arguments): warnings.warn('mind this'); return real(*arguments)\n"
        "load.load = warn; apart.load_apart(None, {})"
    )

    assert result.stderr == "<string>:3: UserWarning: mind this\n"


def test_the_fork_ends_with_the_process_that_asks():
    # The answer is longer than a pipe holds; a fork that waits holds standard output open.
    result = run_python(
        "import os; from vllm_agent.config import apart\n"
        "apart.outcome = lambda *_: bytes(2**20)\n"
        "apart.load_apart(None, {}, lambda: os._exit(0))"
    )

    assert (result.stdout, result.stderr) == ("", "")


def test_it_works_where_ended_processes_are_ignored():
    result = run_python(
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from vllm_agent.config.apart import load_apart; print(load_apart(None, {}).servers)"
    )

    assert result.stdout == "()\n"
