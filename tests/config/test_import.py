"""Importing the configuration stays light: commands that only check it must start at once."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("aiohttp", "asyncio", "huggingface_hub", "prometheus_client", "rich", "ssl", "uvloop")


def test_no_heavy_library_is_imported():
    program = (
        "import sys, vllm_agent.config, vllm_agent.config.flags, vllm_agent.config.markdown\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert result.stdout == "[]\n"
