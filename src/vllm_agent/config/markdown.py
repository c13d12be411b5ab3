"""Renders the configuration reference from the flags and models that implement it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticUndefined

from vllm_agent.config.duration import format_duration
from vllm_agent.config.flags import FLAGS, Flag
from vllm_agent.config.messages import keys_of, section_of
from vllm_agent.config.model import ConfigFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydantic.fields import FieldInfo

    from vllm_agent.config.values import Section

EXAMPLE = """\
discovery:                # without any configuration, every vLLM of this host is found
  page: supervised
  forget_after: 1h

gpu:                      # without it, the GPUs of whatever driver is there
  nvml: required          # a missing driver is a fault of this host, and is reported
  amdgpu: off

servers:
  - name: llama           # on this host, whoever starts it, under a name of its own
    match: {port: 8000}
    probe:
      interval: 5s
      timeout: 2s
      failure_threshold: 3
    start:                # a load that shows no progress for so long has stalled
      load_timeout: 10m

  - name: embeddings
    match:                # all that is written must hold
      systemd_unit: vllm
      command: serve \\S*bge
    url: unix:///run/vllm/embeddings.sock

  - name: qwen            # on another host
    mode: external
    url: https://gpu7.example.org:8443/qwen   # vLLM runs with --root-path /qwen
    model: Qwen/Qwen3-8B                      # must be listed in /v1/models
    api_key_file: qwen.key                    # in the folder of this file
    tls_config:
      ca_file: ca.pem
    restart:
      max_restarts: 3
      window: 60s

  - name: gemma           # started, restarted and stopped by the agent
    mode: managed
    model: google/gemma-3-4b-it
    url: http://127.0.0.1:8001
    restart:
      delay: 5s
    managed:
      command: [/opt/vllm/bin/vllm, serve]
      args: [--max-model-len, "8192"]
      env: {HF_HOME: /srv/models}
      gpu_memory_utilization: 0.8
      user: vllm          # where the agent runs as root
"""

_INTRODUCTION = """\
# Configuration

A flag wins over its environment variable, the variable over the default. An empty variable counts
as unset. Everything that is wrong is reported at once, one problem per line, with exit code 2:

    config.yml:14: servers[0].restart.max_restarts: must be at least 1, got 0

`vllm-agent --config.check --config.file=config.yml` checks without starting.
"""

_FILE_INTRODUCTION = """\
The file is YAML in UTF-8, at most 1 MiB. Unknown and repeated keys are errors; a key without a
value has its default. Anchors, aliases and `<<` work. Durations are written as in Prometheus:
`500ms`, `10s`, `1h30m`, `1d`. Relative paths start at the folder of the file.
"""


_VARIABLES_INTRODUCTION = """\
These change a file that has exactly one managed server. With several they are errors, all but a
`VLLM_PORT` that Kubernetes set; with none they mean nothing to the agent.
"""

_VARIABLES = (
    ("`VLLM_MODEL`", "Its `model`."),
    (
        "`VLLM_PORT`",
        (
            "The port of its `url`. A URI, which Kubernetes sets for a service named `vllm`, is "
            "ignored with a warning. Never handed on: vLLM takes it for its inner ports."
        ),
    ),
    ("`HF_TOKEN`", "The token for the Hugging Face Hub. Handed on; kept and shown nowhere."),
)


def render() -> str:
    """Render the whole reference page, which ends with one line end."""
    parts = (
        _INTRODUCTION,
        "## Flags\n",
        _flag_table(),
        "## File\n",
        _FILE_INTRODUCTION,
        _key_table(),
        "## Variables of a managed server\n",
        _VARIABLES_INTRODUCTION,
        _table(("Environment", "Meaning"), _VARIABLES),
        "## Example\n",
        f"```yaml\n{EXAMPLE}```\n",
    )
    return "\n".join(parts)


def _flag_table() -> str:
    header = ("Flag", "Environment", "Default", "Meaning")
    return _table(header, [_flag_row(flag) for flag in FLAGS])


def _flag_row(flag: Flag) -> tuple[str, ...]:
    usage = flag.name if flag.is_switch else f"{flag.name}={flag.metavar}"
    meaning = flag.help
    if flag.is_switch:
        meaning += " The variable takes `true` or `false`."
    if flag.repeatable:
        meaning += " Repeatable; the variable separates with commas."
    return _code(usage), _code(flag.variable), _code(flag.default_text), meaning


def _key_table() -> str:
    rows: list[tuple[str, ...]] = [
        (_code(path), _default_cell(name, field), field.description or "")
        for path, name, field in _keys(ConfigFile, "")
    ]
    return _table(("Key", "Default", "Meaning"), rows)


def _keys(section: type[Section], prefix: str) -> Iterator[tuple[str, str, FieldInfo]]:
    """Give each key with its path and the name of its field; a section only if it says more."""
    names = section.model_fields
    for name, (key, field) in zip(names, keys_of(section).items(), strict=True):
        inner = section_of(field)
        if inner is None or field.description:
            yield prefix + key, name, field
        if inner is not None:
            is_list = isinstance(field.default, tuple)
            yield from _keys(inner, f"{prefix}{key}[]." if is_list else f"{prefix}{key}.")


def _default_cell(name: str, field: FieldInfo) -> str:
    default: Any = field.default
    if field.is_required():
        return "required"
    if default is PydanticUndefined or default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return _code(f"[{', '.join(default)}]")
    if name.endswith("_seconds"):
        return _code(format_duration(default))
    return _code(str(default).lower())


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    # A bar ends a cell, in code spans too.
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
