"""The demonstration, as somebody sees it who pipes it into a file."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

from vllm_agent.demo.scenarios import SCENARIOS


def _stand_ins() -> set[str]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"/models/demo" in path.read_bytes():
                found.add(path.parent.name)
    return found


def test_it_shows_servers_come_and_tells_the_page_and_leaves_nothing_behind():
    before = _stand_ins()
    shown = subprocess.run(
        [sys.executable, "-m", "vllm_agent", "demo", "--for", "8s"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"page: http://127\.0\.0\.1:\d+/", shown.stdout)
    assert all(f"  {scenario.name}" in shown.stdout for scenario in SCENARIOS)
    assert re.search(r"steady\s+running", shown.stdout)
    assert re.search(r"impostor\s+failed\s+unhealthy", shown.stdout)
    assert re.search(r"other-model\s+failed\s+model_missing", shown.stdout)
    assert _stand_ins() <= before
