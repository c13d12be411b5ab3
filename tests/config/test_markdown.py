"""The generated reference names every flag and key, and its example works."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_agent.config.flags import FLAGS
from vllm_agent.config.markdown import EXAMPLE, render

VALID = Path(__file__).parent / "testdata" / "valid-example.yml"


def test_the_example_is_the_file_that_the_tests_load():
    assert VALID.read_text(encoding="utf-8") == EXAMPLE
    assert f"```yaml\n{EXAMPLE}```\n" in render()


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_stands_in_the_reference(flag):
    page = render()

    assert f"| `{flag.name}" in page
    assert f"| `{flag.variable}` |" in page


@pytest.mark.parametrize(
    "row",
    [
        "| `servers[].name` | required |",
        "| `servers[].mode` | `monitored` |",
        "| `servers[].url` |  |",
        "| `servers[].match.systemd_unit` |  |",
        "| `discovery.enabled` | `true` |",
        "| `discovery.page` | `supervised` |",
        "| `discovery.forget_after` | `1h` |",
        "| `discovery.max_servers` | `32` |",
        "| `discovery.read_environ` | `true` |",
        "| `discovery.ask_hub` | `false` |",
        "| `gpu.nvml` | `auto` |",
        "| `gpu.demo` | `false` |",
        "| `gpu.interval` | `5s` |",
        "| `servers[].api_key_file` |  |",
        "| `servers[].tls_config.insecure_skip_verify` | `false` |",
        "| `servers[].probe.interval` | `10s` |",
        "| `servers[].log_file` |  |",
        "| `servers[].start.start_timeout` | `2m` |",
        "| `servers[].start.load_timeout` | `5m` |",
        "| `servers[].restart.max_restarts` | `3` |",
        "| `servers[].restart.delay` | `2s` |",
        "| `servers[].managed` |  |",
        "| `servers[].managed.command` | `[vllm, serve]` |",
        "| `servers[].managed.args` |  |",
        "| `servers[].managed.env` |  |",
        "| `servers[].managed.gpu_memory_utilization` | `0.9` |",
        "| `servers[].managed.stop_timeout` | `30s` |",
        "| `servers[].managed.user` |  |",
    ],
)
def test_a_key_stands_with_its_default(row: str):
    assert row in render()


@pytest.mark.parametrize("variable", ["VLLM_MODEL", "VLLM_PORT", "HF_TOKEN"])
def test_a_variable_stands_in_the_reference(variable: str):
    assert f"| `{variable}` |" in render()


def test_rows_of_a_table_have_the_cells_of_its_header():
    cells = [
        line.replace("\\|", "").count("|") for line in render().splitlines() if line[:1] == "|"
    ]

    assert set(cells) == {3, 4, 5}


def test_the_page_ends_with_one_line_end():
    assert render().endswith("```\n")
    assert not render().endswith("\n\n")
