"""What importing brings with it: to check a configuration stays quick, and the agent small."""

from __future__ import annotations

import subprocess
import sys

import pytest

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


@pytest.mark.parametrize("module", ["vllm_agent.agent", "vllm_agent.cli.run"])
def test_an_agent_imports_neither_pydantic_nor_yaml(module: str):
    program = f"import sys, {module}; print([m for m in ('pydantic', 'yaml') if m in sys.modules])"

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )

    assert result.stdout == "[]\n"
