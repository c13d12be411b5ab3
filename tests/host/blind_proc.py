"""Reads /proc as an agent does that has no ptrace access to anybody."""

from __future__ import annotations

from dataclasses import replace

from vllm_agent.host.proc import Proc


class BlindProc(Proc):
    """Exit statuses read 0."""

    def shows_exit_status(self, pid):
        return False

    def stat(self, pid):
        stat = super().stat(pid)
        return None if stat is None else replace(stat, exit_status=0)
