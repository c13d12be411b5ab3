"""Real processes: what a started server is given, how a start fails, and that no zombie stays."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import os
import pwd
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.host.test_pidfd import Told, open_fds
from vllm_agent.host.clock import now
from vllm_agent.host.launching import spawn as spawning
from vllm_agent.host.launching.plan import MARKER, LaunchPlan
from vllm_agent.host.launching.spawn import Child, SpawnError, spawn
from vllm_agent.host.launching.start_error import StartError
from vllm_agent.host.pidfd import REAPING_SECONDS, ExitWatch
from vllm_agent.host.proc import Proc
from vllm_agent.lifecycle.reasons import Reason
from vllm_agent.observations import VllmCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Spawner = Callable[..., Child]

OWN_NAME = pwd.getpwuid(os.geteuid()).pw_name
ARGUMENT = "sk-0123456789"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")

TELL = """
import json, os, resource, sys
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
json.dump({
    "argv": sys.argv[1:],
    "cwd": os.getcwd(),
    "environ": dict(os.environ),
    "files": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],
    "group": os.getpgid(0),
    "ids": [os.getresuid(), os.getresgid()],
    "groups": sorted(os.getgroups()),
    "input": sys.stdin.read(),
    "parent": os.getppid(),
    "session": os.getsid(0),
    "blocked": int(status["SigBlk"], 16),
    "ignored": int(status["SigIgn"], 16),
    "umask": int(status["Umask"], 8),
}, sys.stdout)
sys.stdout.flush()
print("and an error", file=sys.stderr, flush=True)
"""


def plan(*arguments: str, user: str | None = OWN_NAME, **environ: str) -> LaunchPlan:
    return LaunchPlan(
        server="llama",
        launch_id="0123456789abcdef",
        model="org/small",
        arguments=arguments,
        environ={"PATH": os.environ["PATH"], MARKER: "llama/0123456789abcdef"} | environ,
        command=VllmCommand(model="org/small"),
        url="http://127.0.0.1:8000",
        user=user,
        gpu_memory_utilization=0.9,
    )


@pytest.fixture
def log(tmp_path: Path) -> Iterator[int]:
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    yield file
    os.close(file)


@pytest.fixture
def start(log) -> Iterator[Spawner]:
    """Starts, and at the end kills and reaps whatever is left."""
    children: list[Child] = []

    def start(*arguments: str, **keys: Any) -> Child:
        children.append(spawn(plan(*arguments, **keys), log, Proc()))
        return children[-1]

    yield start
    for child in children:
        child.close()
        pid = child.sighting.process.pid
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def wait_ended(child: Child) -> None:
    """Until it is a zombie; it is not reaped."""
    assert os.waitid(os.P_PID, child.sighting.process.pid, os.WEXITED | os.WNOWAIT)


def reap(child: Child) -> None:
    os.waitpid(child.sighting.process.pid, 0)


def told(child: Child, tmp_path: Path) -> Any:
    wait_ended(child)
    text, _, error = (tmp_path / "log").read_text().partition("and an error")
    assert error == "\n"
    return json.loads(text)


def refusal(*arguments: str, **keys: Any) -> str:
    with pytest.raises(SpawnError) as caught:
        spawn(plan(*arguments, **keys), 1, Proc())
    assert caught.value.reason is Reason.SPAWN_FAILED
    assert ARGUMENT not in caught.value.detail
    return caught.value.detail


def test_what_a_server_is_given(start, tmp_path):
    child = start(sys.executable, "-c", TELL, ARGUMENT, HF_TOKEN="t")
    pid = child.sighting.process.pid
    facts = told(child, tmp_path)
    assert facts["argv"] == [ARGUMENT]
    assert facts["environ"].items() >= {"HF_TOKEN": "t", "PATH": os.environ["PATH"]}.items()
    assert facts["environ"][MARKER] == "llama/0123456789abcdef"
    assert facts["environ"].keys() <= {"HF_TOKEN", "PATH", MARKER, "LC_CTYPE"}
    assert (facts["session"], facts["group"], facts["parent"]) == (pid, pid, os.getpid())
    assert (facts["cwd"], facts["umask"], facts["input"]) == ("/", 0o022, "")
    assert facts["files"] == ["0", "1", "2"]


def test_who_it_is(start):
    before = time.time()
    child = start("sleep", "60")
    sighting = child.sighting
    stat = Proc().stat(sighting.process.pid)
    assert stat is not None
    assert sighting.process == Proc().identify(stat)
    assert Proc().is_same(sighting.process)
    assert (stat.name, stat.session) == ("sleep", sighting.session)
    assert sighting.session == sighting.process.pid
    assert (sighting.uid, sighting.url) == (os.geteuid(), "http://127.0.0.1:8000")
    assert sighting.command == VllmCommand(model="org/small")
    # The kernel counts in hundredths of a second.
    assert before - 0.05 <= sighting.start_seconds <= time.time() + 0.05


def test_no_file_of_the_agent_is_inherited(start, tmp_path):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFD, 0)
    try:
        child = start(sys.executable, "-c", TELL)
        assert told(child, tmp_path)["files"] == ["0", "1", "2"]
    finally:
        os.close(reading)
        os.close(writing)


def test_no_signal_is_blocked_or_ignored_by_inheritance(start, tmp_path):
    """SIGPIPE and SIGXFSZ are ignored in every Python, others by whoever started the agent."""
    ignored = {s for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    try:
        child = start("cat", "/proc/self/status")
        wait_ended(child)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask | {
            signal.SIGTERM,
            signal.SIGUSR1,
        }
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    text = (tmp_path / "log").read_text()
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    left = {s for s in signal.valid_signals() if int(status["SigIgn"], 16) >> (s - 1) & 1}
    assert left == ignored - {signal.SIGPIPE, signal.SIGXFSZ}
    assert signal.SIGPIPE in ignored


def test_the_output_stays_the_callers(start, log, tmp_path):
    wait_ended(start("echo", "one"))
    wait_ended(start("echo", "two"))
    os.write(log, b"three\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\nthree\n"


def test_the_limit_of_files_is_the_one_that_the_agent_was_given(start, monkeypatch):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    monkeypatch.setattr(spawning, "OPEN_FILES_AT_START", 200)
    pid = start("sleep", "60").sighting.process.pid
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (200, hard)


def test_it_lives_on_when_the_agent_is_killed(tmp_path):
    """Nothing of the agent, no pipe and no terminal, ties it."""
    agent = (
        "import os, signal, sys\n"
        "from tests.host.launching.test_spawn import plan\n"
        "from vllm_agent.host.launching.spawn import spawn\n"
        "from vllm_agent.host.proc import Proc\n"
        "log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "command = 'echo $$; cat <\"$0\"; echo still here; exec sleep 60'\n"
        "child = spawn(plan('sh', '-c', command, sys.argv[2]), log, Proc())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    fifo, log = tmp_path / "fifo", tmp_path / "log"
    os.mkfifo(fifo)
    repository = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", agent, log, fifo], check=False, cwd=repository)
    assert ended.returncode == -signal.SIGKILL
    fifo.write_text("")
    with contextlib.ExitStack() as stack:
        pid = int(log.read_text().split()[0])
        file = os.pidfd_open(pid)
        stack.callback(os.close, file)
        stack.callback(signal.pidfd_send_signal, file, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while "still here" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert log.read_text().split("\n")[1] == "still here"
        stat = Proc().stat(pid)
        assert stat is not None
        assert stat.session == pid


@as_root
def test_root_becomes_the_user_with_all_its_groups(start, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 12345, 54321])
    entry = pwd.getpwnam("nobody")
    # The python of a virtual environment may be out of reach for nobody.
    child = start(
        "sh", "-c", "id -u; id -G; id -g; umask; exec cat /proc/self/status", user="nobody"
    )
    wait_ended(child)
    uid, groups, gid, umask, *status = (tmp_path / "log").read_text().splitlines()
    assert (int(uid), int(gid), umask) == (entry.pw_uid, entry.pw_gid, "0022")
    assert {int(group) for group in groups.split()} == {entry.pw_gid, 12345, 54321}
    facts = dict(line.split(":\t", 1) for line in status)
    assert set(facts["Uid"].split()) == {str(entry.pw_uid)}
    assert set(facts["Gid"].split()) == {str(entry.pw_gid)}
    assert (facts["CapPrm"], facts["CapEff"]) == ("0" * 16, "0" * 16)
    assert child.sighting.uid == entry.pw_uid


@as_root
def test_root_has_to_be_asked_for():
    with pytest.raises(StartError, match=r"set managed\.user") as caught:
        spawn(plan("true", user=None), 1, Proc())
    assert caught.value.reason is Reason.SPAWN_FAILED


@as_root
def test_root_without_the_capability_says_which_one():
    code = (
        "import ctypes\n"
        "from tests.host.launching.test_spawn import refusal\n"
        "prctl = ctypes.CDLL(None).prctl\n"
        # PR_CAPBSET_DROP does not reach what is held: an exec without CAP_SETUID (7) does.
        "import os, sys\n"
        "if len(sys.argv) < 2:\n"
        "    assert prctl(24, 7, 0, 0, 0) == 0\n"
        "    os.execv(sys.executable, [*sys.orig_argv, 'again'])\n"
        "print(refusal('true', user='nobody'))\n"
    )
    repository = Path(__file__).parents[3]
    output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=repository)
    assert output == (
        "the agent may not become user 'nobody' (Operation not permitted): "
        "it needs CAP_SETUID and CAP_SETGID\n"
    )


def test_a_program_that_is_not_there(tmp_path):
    assert refusal("no-such-program", ARGUMENT) == (
        "no-such-program could not be started: "
        "there is no such program: give its path in managed.command"
    )
    assert "there is no such program" in refusal("/no/such/program")
    file = tmp_path / "file"
    file.touch()
    assert "there is no such program" in refusal(f"{file}/program")


def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_program_that_cannot_be_executed(tmp_path):
    assert "may not execute it" in refusal(script(tmp_path / "a", "#!/bin/sh\n", 0o644))
    assert "may not execute it" in refusal(str(tmp_path))
    assert "what its first line names" in refusal(script(tmp_path / "b", "#!/no/python\n"))
    assert "a script without '#!'" in refusal(script(tmp_path / "c", "exit 0\n"))
    path = str(tmp_path)
    script(tmp_path / "vllm", "#!/no/python\n")
    assert "what its first line names" in refusal("vllm", PATH=path)


def test_arguments_that_no_process_can_be_given():
    assert "too long" in refusal("true", ARGUMENT * 300_000)
    assert "has a character" in refusal("true", f"{ARGUMENT}\0")
    assert "has a character" in refusal("true", **{"A=B": "c"})


@pytest.mark.parametrize(
    ("number", "detail"),
    [
        (errno.EAGAIN, "TasksMax="),
        (errno.ENOMEM, "no memory"),
        (errno.EMFILE, "LimitNOFILE="),
        (errno.ENFILE, "fs.file-max"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_kernel_that_gives_no_process(number, detail, monkeypatch):
    def refuse(*_args: object, **_keys: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert detail in refusal("true")


def test_a_file_that_popen_needs_and_does_not_find(monkeypatch):
    monkeypatch.setattr(os, "devnull", "/no/null")
    assert refusal("true") == "true could not be started: /no/null: No such file or directory"


def test_a_real_lack_of_files_leaves_none_open(log):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (log + 1, limits[1]))
    try:
        detail = refusal("true")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "LimitNOFILE=" in detail
    assert open_fds() == before


@pytest.mark.parametrize("parent", [None, 1])
def test_a_process_that_proc_does_not_show_is_not_left(parent, log, tmp_path, monkeypatch):
    """With the /proc of its host an agent in a container sees a stranger under the number."""
    started: list[int] = []
    begin = spawning._start

    def note(*args) -> int:
        started.append(begin(*args))
        folder = tmp_path / f"proc/{started[-1]}"
        folder.mkdir(parents=True)
        if parent is not None:
            fields = ["S", str(parent), *["1"] * 49]
            (folder / "stat").write_text(f"{started[-1]} (vllm) {' '.join(fields)}\n")
        return started[-1]

    monkeypatch.setattr(spawning, "_start", note)
    with pytest.raises(SpawnError, match="does not show the process"):
        spawn(plan("sleep", "60"), log, Proc(tmp_path / "proc"))
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)


def test_only_its_own_watch_reaps_it(start):
    """Popen warns of what it lets go, and reaps it when the next one is made."""
    child = start("sh", "-c", "exit 3")
    gc.collect()
    wait_ended(child)
    subprocess.run(["true"], check=True)
    stat = Proc().stat(child.sighting.process.pid)
    assert stat is not None
    assert (stat.is_zombie, stat.exit_status) == (True, 3 << 8)


def test_programs_are_executed_without_the_vfork_that_stops_every_thread():
    assert not subprocess._USE_VFORK


async def test_a_zombie_waits_for_its_status_to_be_read_and_goes(start, monkeypatch):
    monkeypatch.setattr(spawning, "ZOMBIE_SECONDS", 0.05)
    before = open_fds()
    child = start("sh", "-c", "exit 3")
    process = child.sighting.process
    child.watch()
    assert open_fds() > before
    wait_ended(child)
    # As late as a launch that failed at once is followed.
    heard = Told()
    ExitWatch(process, Proc(), clock=now, on_exit=heard.on_exit, on_status=heard.on_status)
    assert await heard.until(1) == [("exit", 3 << 8)]
    await gone(child)
    assert open_fds() == before


async def gone(child: Child) -> None:
    async with asyncio.timeout(30):
        # A zombie that goes tells nobody.
        while Proc().is_same(child.sighting.process):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def test_those_who_may_not_look_at_a_zombie_hear_of_its_reaping_in_time():
    assert 0.5 <= spawning.ZOMBIE_SECONDS < REAPING_SECONDS - 0.25


async def test_no_file_for_a_watch_delays_the_reaping_only(start, monkeypatch):
    monkeypatch.setattr(spawning, "ZOMBIE_SECONDS", 0.0)
    monkeypatch.setattr(spawning, "RETRY_SECONDS", 0.01)
    child = start("true")
    wait_ended(child)
    opened = os.pidfd_open
    tries: list[int] = []

    def refuse_at_first(pid: int) -> int:
        tries.append(pid)
        if len(tries) < 3:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(pid)

    monkeypatch.setattr(os, "pidfd_open", refuse_at_first)
    child.watch()
    await gone(child)
    assert len(tries) == 3


@pytest.mark.parametrize("when", ["alive", "retrying", "zombie"])
async def test_after_close_nothing_happens_to_it(start, when, monkeypatch):
    monkeypatch.setattr(spawning, "ZOMBIE_SECONDS", 0.0)
    monkeypatch.setattr(spawning, "RETRY_SECONDS", 0.0)
    before = open_fds()
    child = start("sleep", "60")
    if when == "retrying":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    child.watch()
    if when == "zombie":
        os.kill(child.sighting.process.pid, signal.SIGKILL)
        wait_ended(child)
        child._ended()
    child.close()
    child.close()
    os.kill(child.sighting.process.pid, signal.SIGKILL)
    wait_ended(child)
    await asyncio.sleep(0.02)
    assert Proc().is_same(child.sighting.process)
    assert open_fds() == before


def refuse(*_args: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


async def test_somebody_who_reaped_it_first_is_no_error(start, monkeypatch):
    monkeypatch.setattr(spawning, "ZOMBIE_SECONDS", 0.0)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, error: errors.append(error))
    child = start("true")
    child.watch()
    reap(child)
    await gone(child)
    await asyncio.sleep(0.02)
    assert errors == []


async def test_it_starts_beside_threads_that_hold_locks(log):
    """A fork has one thread: what another one holds there is held for ever."""
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            json.dumps({"a": [*range(50)]})

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        starts = (asyncio.to_thread(spawn, plan("true"), log, Proc()) for _ in range(20))
        async with asyncio.timeout(60):
            children = await asyncio.gather(*starts)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for child in children:
        file = os.pidfd_open(child.sighting.process.pid)
        assert select.select([file], [], [], 30)[0]
        os.close(file)
        reap(child)
