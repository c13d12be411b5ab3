"""Frozen facts about the processes of a local server. Unknown is None, never 0."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for ever: its PID is used again, this is not.

    `boot_id` is /proc/sys/kernel/random/boot_id; `start_ticks` is field 22 of /proc/PID/stat.
    """

    boot_id: str
    pid: int
    start_ticks: int


class ComponentRole(StrEnum):
    """The parts of a vLLM's process tree."""

    API_SERVER = "api_server"
    ENGINE_CORE = "engine_core"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class ComponentAtClose:
    """A process of the tree, other than the main one, at the moment the listener closed.

    `is_exiting` is PF_EXITING of /proc/PID/stat; `has_kill_pending` is SIGKILL in ShdPnd or SigPnd
    of /proc/PID/status.
    """

    role: ComponentRole
    is_gone: bool
    is_exiting: bool
    has_kill_pending: bool

    @property
    def is_alive(self) -> bool:
        """Running on, with nothing that says it is about to end."""
        return not (self.is_gone or self.is_exiting or self.has_kill_pending)


@dataclass(frozen=True, slots=True)
class ComponentExit:
    """The end of a process of the tree other than the main one.

    `wait_status` is what waitpid(2) reports; None where the kernel would not tell us.
    `at_seconds` is on the monotonic clock.
    """

    role: ComponentRole
    at_seconds: float
    wait_status: int | None


@dataclass(frozen=True, slots=True)
class Component:
    """A process of the tree that has a role. The main process is one where it serves itself.

    `rank` is the suffix of its title in lower case ("tp0", "dp1"), empty for the only one.
    """

    role: ComponentRole
    rank: str
    pid: int
    is_alive: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """A component that outlived its main process, and holds on to what it has.

    `start_seconds` is when it was started, in unix time.
    """

    process: ProcessId
    role: ComponentRole
    rank: str
    start_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTree:
    """Everything that runs for a local server, whole tree, at one moment.

    `process` is the main process of the newest launch. `components` are those of that launch,
    ended ones included. `pids` are all processes that live, of any launch, and `orphans` the
    components among them that outlived their main process. Sums count a process whose value may not
    be read as nothing, and are None when no process could be read; `cpu_seconds` never falls, not
    even from one launch to the next.
    """

    process: ProcessId
    is_main_alive: bool
    components: tuple[Component, ...] = ()
    pids: tuple[int, ...] = ()
    processes: int = 0
    threads: int | None = None
    resident_bytes: int | None = None
    open_fds: int | None = None
    cpu_seconds: float | None = None
    orphans: tuple[Orphan, ...] = ()

    @property
    def is_engine_gone(self) -> bool:
        """Whether this launch had an EngineCore and one of its EngineCores has ended."""
        return any(c.role is ComponentRole.ENGINE_CORE and not c.is_alive for c in self.components)

    @property
    def engines_alive(self) -> int:
        """How many EngineCores run."""
        return sum(c.role is ComponentRole.ENGINE_CORE and c.is_alive for c in self.components)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmCommand:
    """What the command line (and the file of `--config`) of a main process says.

    Only these values are kept: the rest of the line may hold secrets. `model` is None where none is
    given (vLLM has a default); `served_names` are those of `--served-model-name`. `host` is None
    for all addresses. `uds` is the path of a unix socket as the server sees it, and replaces host
    and port. `engines` is how many EngineCores this node runs, `api_servers` how many API
    servers; None where the line does not say. `is_supervisor` is a data-parallel supervisor,
    whose children listen on `port` and the ports that follow. `download_dir`, `revision` and
    `load_format` are as given; `is_eager` is whether compiling is turned off.
    """

    model: str | None = None
    served_names: tuple[str, ...] = ()
    host: str | None = None
    port: int = 8000
    uds: str | None = None
    is_https: bool = False
    root_path: str = ""
    is_headless: bool = False
    is_supervisor: bool = False
    engines: int | None = None
    api_servers: int | None = None
    config_file: str | None = None
    download_dir: str | None = None
    revision: str | None = None
    load_format: str | None = None
    is_eager: bool = False

    @property
    def served_name(self) -> str | None:
        """The name that clients ask for: the first served one, else the model."""
        return self.served_names[0] if self.served_names else self.model


class SightKind(StrEnum):
    """What the agent would like to see of a local server, or of the host."""

    FDS = "fds"
    EXIT_STATUS = "exit_status"
    CGROUP = "cgroup"
    LOG = "log"
    SYSTEMD = "systemd"
    NETWORK = "network"
    PROCESSES = "processes"
    CONFIG_FILE = "config_file"
    GPU = "gpu"
    GPU_PROCESSES = "gpu_processes"


@dataclass(frozen=True, slots=True)
class Sight:
    """Whether one kind of thing can be seen; `why_not` and `fix` are sentences, empty if it can.

    `fix` is a command or a setting that would make it visible.
    """

    kind: SightKind
    is_visible: bool
    why_not: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """The main process of a vLLM, as discovery found it.

    `start_seconds` is unix time. `unit` is the systemd service that it runs in, with its suffix;
    `is_user_unit` whether that is one of a user's own systemd. `container_id` is the 64 hex digits
    of a Docker, containerd, CRI-O or Podman container. `url` is where to connect to from here, None
    where that is nowhere (headless, or an address of another network namespace that cannot be
    told). `log_file` is the file that the agent gave it for its output alone.
    """

    process: ProcessId
    start_seconds: float
    command: VllmCommand
    uid: int
    session: int
    unit: str | None = None
    is_user_unit: bool = False
    container_id: str | None = None
    url: str | None = None
    log_file: str | None = None

    @property
    def is_supervised(self) -> bool:
        """Whether something keeps it up: a systemd service, or a container runtime."""
        return self.unit is not None or self.container_id is not None
