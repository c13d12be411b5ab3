"""Asks systemd whether it is stopping the unit of a vLLM.

How a service of any type ends, from recordings of systemd 252 (`Restart=always` or not):

- Somebody stops or restarts it: a job of type `stop` or `restart`, the unit is `deactivating`
  (`stop`, `stop-sigterm`) while its main process is there, and `Result` is `success`. Once the main
  process is gone it is still `deactivating` (`final-sigterm`) until the rest has ended. Only where
  TimeoutStopSec was over is `Result` `timeout`, still with the job.
- The main process ends by itself, with whatever code, a `kill` included: the unit is `deactivating`
  too (`stop-sigterm` for the rest, `stop-post`), but with no main process and no job. Then comes
  `auto-restart`, whose own job of type `restart` starts with no main process.
- systemd itself gives it up (RuntimeMaxSec, TimeoutStartSec, WatchdogSec, OOMPolicy): the unit is
  `deactivating` while its main process is there, with `Result` `timeout`, `watchdog` or `oom-kill`,
  and without a job of those types. Nobody asked for that.

So the order decides: whether the unit left `active` before its main process ended. systemd keeps
both moments; it forgets them when the unit is started again, and when it unloads it after its end.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vllm_agent.host.short_command import NoAnswerError, run
from vllm_agent.observations import Sight, SightKind

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE_SECONDS: Final = 1.0
"""For both questions. systemctl needs 10 ms; an ending waits at most 2 s for its evidence."""

MAX_ANSWER_BYTES: Final = 64 * 1024
"""Of an answer: a dozen properties have some 400 bytes."""

_PROPERTIES: Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "Job",
    "Result",
    "NRestarts",
    "MainPID",
    "InvocationID",
    "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic",
    "ActiveExitTimestampMonotonic",
)
_STOP_JOBS: Final = frozenset({"stop", "restart", "try-restart"})
_MICROSECONDS: Final = 1e6

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitView:
    """A service as systemd sees it at one moment; times are on the monotonic clock.

    `main_pid` is None when the main process has ended. `job` is the type of the job that runs or
    waits for it. `left_active_seconds` is when it was last no longer active.
    """

    active_state: str
    sub_state: str
    result: str
    main_pid: int | None = None
    job: str | None = None
    restarts: int | None = None
    invocation_id: str | None = None
    main_start_seconds: float | None = None
    main_exit_seconds: float | None = None
    left_active_seconds: float | None = None

    @property
    def says_stop(self) -> bool:
        """Whether it is being stopped, or was, by somebody who asked systemd to."""
        is_asked = self.job in _STOP_JOBS
        if self.main_pid is not None:
            return is_asked or (self.active_state == "deactivating" and self.result == "success")
        return self._left_before_exit and (is_asked or self.result == "success")

    @property
    def stop_seconds(self) -> float | None:
        """When the stop began; None where it has not, or a job for it still waits for another."""
        if not self.says_stop or self.active_state == "active":
            return None
        return self.left_active_seconds

    @property
    def _left_before_exit(self) -> bool:
        start, left, end = (
            self.main_start_seconds,
            self.left_active_seconds,
            self.main_exit_seconds,
        )
        return start is not None and left is not None and end is not None and start <= left < end


async def ask_unit(
    unit: str,
    *,
    is_user_unit: bool = False,
    uid: int = 0,
    systemctl: Sequence[str] = ("systemctl",),
) -> UnitView | None:
    """What systemd says of a service now; None where it does not answer within DEADLINE_SECONDS.

    `uid` is the user whose systemd runs it, if it is not the host's: the agent must be that user or
    root. `systemctl` is the program to ask, with arguments.
    """
    try:
        return await _ask(unit, is_user_unit=is_user_unit, uid=uid, systemctl=systemctl)
    except NoAnswerError as error:
        _log.debug("systemd does not tell of a unit", extra={"unit": unit, "error": str(error)})
        return None


async def systemd_sight(
    unit: str,
    *,
    is_user_unit: bool = False,
    uid: int = 0,
    systemctl: Sequence[str] = ("systemctl",),
) -> Sight:
    """Whether systemd can be asked about a service."""
    try:
        await _ask(unit, is_user_unit=is_user_unit, uid=uid, systemctl=systemctl)
    except NoAnswerError as error:
        if is_user_unit:
            fix = f"run the agent as root or as uid {uid}"
        else:
            fix = (
                "run the agent on the host, or mount /run/systemd and /run/dbus into its container"
            )
        return Sight(SightKind.SYSTEMD, is_visible=False, why_not=str(error), fix=fix)
    return Sight(SightKind.SYSTEMD, is_visible=True)


async def _ask(unit: str, *, is_user_unit: bool, uid: int, systemctl: Sequence[str]) -> UnitView:
    command, environment = _as_user(systemctl, uid) if is_user_unit else (systemctl, {})
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            shown = await run(
                (*command, "show", f"--property={','.join(_PROPERTIES)}", "--", unit),
                deadline_seconds=DEADLINE_SECONDS,
                max_bytes=MAX_ANSWER_BYTES,
                environment=environment,
            )
            properties = parse_properties(shown.output)
            if properties.get("LoadState", "loaded") == "not-found":
                raise NoAnswerError(f"systemd knows no unit {unit}")
            job = None
            # Few units have a job, and `show` tells only its number.
            if properties.get("Job", "") not in {"", "0"}:
                jobs = await run(
                    (*command, "list-jobs", "--no-legend", "--plain", "--full", "--", unit),
                    deadline_seconds=DEADLINE_SECONDS,
                    max_bytes=MAX_ANSWER_BYTES,
                    environment=environment,
                )
                job = parse_job(jobs.output, unit)
    except TimeoutError:
        raise NoAnswerError(f"systemd did not answer within {DEADLINE_SECONDS:g} s") from None
    return view(properties, job)


def _as_user(systemctl: Sequence[str], uid: int) -> tuple[Sequence[str], dict[str, str]]:
    """How to ask the systemd of a user, which answers to that user only, not even to root."""
    folder = f"/run/user/{uid}"
    environment = {"XDG_RUNTIME_DIR": folder}
    asked = (*systemctl, "--user")
    if os.geteuid() == uid:
        return asked, environment
    if os.geteuid() != 0:
        raise NoAnswerError(f"the systemd of uid {uid} answers to that user only")
    try:
        gid = os.stat(folder).st_gid
    except OSError as error:
        raise NoAnswerError(f"uid {uid} has no systemd of its own now") from error
    setpriv = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs")
    return (*setpriv, "--", *asked), environment


def parse_properties(output: bytes) -> dict[str, str]:
    """The lines of `systemctl show`."""
    lines = output.decode("utf-8", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def parse_job(output: bytes, unit: str) -> str | None:
    """The type of a unit's job, from the lines `8 vllm.service stop running` of list-jobs."""
    for line in output.decode("utf-8", "replace").splitlines():
        match line.split():
            case [_, name, kind, *_] if name == unit:
                return kind
    return None


def view(properties: dict[str, str], job: str | None) -> UnitView:
    """The properties of a unit as a value.

    Raises:
        NoAnswerError: they are not those of a unit.
    """
    if not properties.get("ActiveState"):
        raise NoAnswerError("systemd tells no state of the unit")
    return UnitView(
        active_state=properties["ActiveState"],
        sub_state=properties.get("SubState", ""),
        result=properties.get("Result", ""),
        main_pid=_number(properties, "MainPID") or None,
        job=job,
        restarts=_number(properties, "NRestarts"),
        invocation_id=properties.get("InvocationID") or None,
        main_start_seconds=_moment(properties, "ExecMainStartTimestampMonotonic"),
        main_exit_seconds=_moment(properties, "ExecMainExitTimestampMonotonic"),
        left_active_seconds=_moment(properties, "ActiveExitTimestampMonotonic"),
    )


def _number(properties: dict[str, str], name: str) -> int | None:
    text = properties.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _moment(properties: dict[str, str], name: str) -> float | None:
    """A moment of the monotonic clock; systemd says 0 for one that has not been."""
    microseconds = _number(properties, name)
    return microseconds / _MICROSECONDS if microseconds else None
