"""A root folder with this machine's programs and nothing of this project, in place of an image.

Commands run in it by chroot(2), in a mount namespace of their own that ends with them, so nothing
has to be unmounted. Needs root, and `unshare`, `mount`, `chroot` and `setpriv`, which are part of
every Debian.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAMS: Final = ("unshare", "mount", "chroot", "setpriv")

SYSTEM_FOLDERS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")
"""What a program needs to start; links on a merged /usr, and folders otherwise."""

SYSTEM_FILES: Final = (
    *("etc/ld.so.cache", "etc/ssl", "etc/ca-certificates", "etc/pki"),
    *("etc/resolv.conf", "etc/hosts", "etc/nsswitch.conf"),
)
"""What pip needs where it has to ask an index."""

BASE_FOLDER: Final = "/base/bin"
"""Where the interpreter has the names that it has in a Python image."""

BASE_PATH: Final = f"{BASE_FOLDER}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# `$1` is the root, `$2` what is below it, as lines of kind, source and target; the rest is run.
_ENTER: Final = """
set -e
root=$1
printf '%s\\n' "$2" | while read -r kind source target; do
  case $kind in
    read) mount --rbind "$source" "$root$target"; mount -o remount,bind,ro "$root$target" ;;
    write) mount --rbind "$source" "$root$target" ;;
    memory) mount -t tmpfs -o mode=1777 none "$root$target" ;;
    proc) mount -t proc none "$root$target" ;;
    seal) mount -o remount,bind,ro "$root" ;;
  esac
done
shift 2
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, slots=True)
class User:
    """Who runs a command: its numbers, and the capabilities that it may use at most."""

    uid: int = 0
    gid: int = 0
    capabilities: tuple[str, ...] | None = None
    """None for all that root has."""

    @property
    def prefix(self) -> list[str]:
        """The command that makes it so."""
        words = ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if self.capabilities is not None:
            kept = "".join(f",+{one.lower()}" for one in self.capabilities)
            words += ["--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all{kept}"]
        return words


@dataclass(frozen=True, slots=True)
class CleanRoot:
    """One root folder, and what every command in it sees besides the files there."""

    folder: Path
    mounts: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def make(cls, folder: Path) -> CleanRoot:
        """Makes the folder, with this machine's programs and its Python as `python`."""
        root = cls(folder)
        for name in ("proc", "dev", "tmp", "etc", "var/lib", "opt", "base/bin"):
            (folder / name).mkdir(parents=True)
        for name in SYSTEM_FOLDERS:
            outside = Path("/", name)
            if outside.is_symlink():
                (folder / name).symlink_to(outside.readlink())
            elif outside.exists():
                root = root.seeing(outside)
        for name in SYSTEM_FILES:
            if Path("/", name).exists():
                root = root.seeing(Path("/", name))
        prefix = Path(sys.base_prefix)
        if not prefix.is_relative_to("/usr"):
            root = root.seeing(prefix)
        python = folder / "base/bin/python"
        python.write_text(f'#!/bin/sh\nexec {_base_python()} "$@"\n', encoding="ascii")
        python.chmod(0o755)
        return CleanRoot(folder, (*root.mounts, ("write", "/dev", "/dev")))

    def seeing(self, outside: Path, inside: str | None = None) -> CleanRoot:
        """The same root, where commands see a file or folder of this machine, too."""
        mount = self._mount(outside.resolve(), inside or str(outside), "read")
        return CleanRoot(self.folder, (*self.mounts, mount))

    def command(
        self,
        words: Sequence[str],
        *,
        environment: Mapping[str, str],
        user: User,
        work_folder: str = "/",
        volumes: Mapping[str, Path] | None = None,
        memory: Sequence[str] = (),
        is_sealed: bool = False,
        has_own_pids: bool = False,
    ) -> list[str]:
        """The command line, for this machine, of a command that is run inside.

        `volumes` are folders of this machine that can be written, by their path inside; `memory`
        are paths of file systems in memory. A sealed root cannot be written otherwise.
        """
        mounts = [("write", str(self.folder), "/"), *self.mounts]
        mounts += [
            self._mount(source, target, "write") for target, source in (volumes or {}).items()
        ]
        mounts += [("proc" if has_own_pids else "write", "/proc", "/proc")]
        if is_sealed:
            mounts.append(("seal", "-", "-"))
        mounts += [("memory", "-", path) for path in memory]
        lines = "\n".join(" ".join(one) for one in mounts)
        enter = [
            "unshare",
            "--mount",
            *(("--pid", "--fork", "--kill-child") if has_own_pids else ()),
        ]
        variables = [f"{name}={value}" for name, value in environment.items()]
        return [
            *(*enter, "--", "sh", "-c", _ENTER, "sh", str(self.folder), lines),
            *("/usr/bin/env", "-i", f"--chdir={work_folder}", *variables),
            *(*user.prefix, *words),
        ]

    def run(
        self, words: Sequence[str], *, timeout_seconds: float, **how: object
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside to its end; `how` as for `command`."""
        return subprocess.run(
            self.command(words, **how),  # type: ignore[arg-type]
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
            stdin=subprocess.DEVNULL,
        )

    def _mount(self, outside: Path, inside: str, kind: str) -> tuple[str, str, str]:
        target = self.folder / inside.lstrip("/")
        if outside.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        return (kind, str(outside), inside)


def _base_python() -> Path:
    """The interpreter below the virtual environment of these tests."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Path(sys.base_prefix, "bin", version)


def may_mount() -> bool:
    """Whether this user can make a clean root: root, and with all the rights of root."""
    tried = ["unshare", "--mount", "mount", "--bind", "/proc", "/proc"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0
