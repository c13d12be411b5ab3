"""Servers that do their worst: none is ever running, and none delays another."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from tests.e2e.agent_process import AgentProcess, wait_until
from vllm_agent.demo.launch import StandIn, free_port

if TYPE_CHECKING:
    from pathlib import Path

WORST = (
    ("garbage",),
    ("endless",),
    ("huge:/metrics",),
    ("drip",),
    ("silent",),
    ("reset",),
    ("bad-json:/v1/models",),
    ("headers-huge",),
    ("truncated:/v1/models",),
    ("status:500",),
    ("redirect:http://127.0.0.1:{canary}/:/v1/models",),
)
# Two rounds that time out, and one more, at the intervals below.
JUDGED_SECONDS = 15.0


def test_none_is_running_and_none_delays_another(tmp_path: Path) -> None:
    """Eleven hostile servers beside one that serves, is killed, and is seen to die at once."""
    canary, port = free_port(), free_port()
    key_file = tmp_path / "key"
    key_file.write_text("canary-key-77aa\n")
    with contextlib.ExitStack() as stack:
        # The redirect leads here; whoever follows it is in the access log.
        target = stack.enter_context(StandIn.start(port=canary))
        lines = [f"  - {{name: good, mode: external, url: 'http://127.0.0.1:{port}'}}\n"]
        names = []
        for number, (mode,) in enumerate(WORST):
            hostile = StandIn.start("--hostile", mode.format(canary=canary))
            stack.enter_context(hostile)
            names.append(f"bad-{number}")
            lines.append(
                f"  - {{name: bad-{number}, mode: external, url: '{hostile.url}', "
                f"api_key_file: {key_file}, probe: {{interval: 1s, timeout: 500ms}}}}\n"
            )
        good = stack.enter_context(StandIn.start(port=port))
        agent = stack.enter_context(AgentProcess(tmp_path, "".join(lines)))
        agent.wait_state("good", "running")

        def states() -> dict[str, str]:
            return {name: agent.state(name) for name in names}

        seen: set[str] = set()
        deadline = time.monotonic() + JUDGED_SECONDS
        while not all(s == "failed" for s in states().values()):
            seen |= set(states().values())
            assert time.monotonic() < deadline, states()
            time.sleep(0.1)
        assert "running" not in seen
        good.kill()
        wait_until(lambda: agent.state("good") == "failed", "the good one's death is seen", 1.0)
        assert '"GET ' not in target.log_text(), "a redirect was followed"
        causes = {
            dict(labels)["cause"]
            for (metric, labels), value in agent.samples().items()
            if metric == "vllm_agent_probe_failures_total" and value
        }
        assert {"bad_body", "reset", "timeout", "too_large", "http_5xx"} <= causes
