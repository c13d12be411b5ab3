"""What keeps a process up, by the names of its cgroup: a systemd service, a container, or nothing.

A unit is told only where it is the vLLM's own. Something that people start programs from (a login,
a terminal, cron, a batch scheduler) or that runs containers keeps no vLLM up, although vLLMs live
below it; nor does a service of a systemd inside a container, which this host's cannot be asked of.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NO_SUPERVISORS: Final = frozenset(
    {
        # logins, terminals and editors: what runs below was typed by somebody
        *("ssh", "sshd", "user", "getty", "serial-getty", "console-getty", "container-getty"),
        *("autovt", "emergency", "rescue", "systemd-logind", "ttyd", "code-server", "jupyter"),
        *("jupyterhub", "gnome-terminal-server", "dbus", "dbus-broker"),
        # what starts jobs that may end
        *("cron", "crond", "anacron", "atd", "slurmd", "slurmstepd", "pbs", "lsf", "condor"),
        # runtimes: a container of theirs has an id of its own
        *("docker", "snap.docker.dockerd", "containerd", "crio", "podman", "buildkit", "kubelet"),
        *("k3s", "k3s-agent", "rke2-server", "rke2-agent", "nomad", "systemd-nspawn"),
        *("systemd-machined", "libvirtd", "virtqemud", "lxc", "lxd", "incus"),
    }
)
"""Units, without suffix and instance, that start vLLMs and do not keep them up."""

_CONTAINER: Final = re.compile(r"(?:(?P<before>.*)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?")
"""`docker-<id>.scope`, `<id>` below `/docker` or a pod, `libpod-payload-<id>`, `…:<id>`."""

_MONITOR: Final = "conmon"
"""Podman and CRI-O run one process per container outside of it, in a cgroup of its own."""

_MACHINE: Final = re.compile(r"machine\.slice|lxc|lxc\.payload\..*|\.lxc")
"""Whole systems in a container: a unit below is one of another systemd."""

_USER_SERVICE: Final = re.compile(r"user@\d+\.service")

_TRANSIENT: Final = re.compile(r"run-[a-z]?\d.*\.service")
"""Names that systemd-run makes up, with a PID in them: somebody ran a command once."""


@dataclass(frozen=True, slots=True)
class Supervision:
    r"""What keeps a process up; neither a unit nor a container for one that somebody just started.

    `unit` is the service as systemctl wants it, escapes (`\x2d`) and `.service` included;
    `is_user_unit` whether a user's own systemd runs it. Both a unit and a container are told where
    the unit's cgroup encloses the container, as that of a podman quadlet does. `container_id` has
    64 hex digits.
    """

    unit: str | None = None
    is_user_unit: bool = False
    container_id: str | None = None


def parse_supervision(cgroup_text: str) -> Supervision:
    """What /proc/PID/cgroup says; never raises.

    With cgroup v1 the hierarchies may disagree: systemd's own is asked first, and a container that
    any of them names counts.
    """
    paths = [path.split("/") for path in _paths(cgroup_text)]
    units = [unit for path in paths for unit in _unit(path)]
    containers = [found for path in paths for _, found in _containers(path)]
    unit, is_user_unit = units[0] if units else (None, False)
    return Supervision(unit, is_user_unit, containers[-1] if containers else None)


def _paths(text: str) -> list[str]:
    """The paths of all hierarchies, that of systemd first."""
    lines = [line.split(":", 2) for line in text.split("\n") if line.count(":") > 1]
    lines.sort(key=lambda line: not (line[0] == "0" or line[1] == "name=systemd"))
    return [line[2] for line in lines]


def _containers(path: list[str]) -> Iterator[tuple[int, str]]:
    """The place and the id of each container on the way, the innermost last."""
    for place, name in enumerate(path):
        found = _CONTAINER.fullmatch(name)
        if found is not None and _MONITOR not in (found["before"] or ""):
            yield place, found["id"]


def _unit(path: list[str]) -> Iterator[tuple[str, bool]]:
    """The service that the process is in, if it is one that keeps it up, and whether a user's."""
    end = min((place for place, _ in _containers(path)), default=len(path))
    ours = path[:end]
    if any(_MACHINE.fullmatch(name) for name in ours):
        return
    units = [name for name in ours if name.endswith((".service", ".scope"))]
    # The innermost: a scope within a service is a session of somebody.
    if units and _is_supervisor(units[-1]):
        yield units[-1], any(_USER_SERVICE.fullmatch(name) for name in units[:-1])


def _is_supervisor(unit: str) -> bool:
    name, _, suffix = unit.rpartition(".")
    return (
        suffix == "service"
        and name.partition("@")[0] not in _NO_SUPERVISORS
        and not _TRANSIENT.fullmatch(unit)
    )
