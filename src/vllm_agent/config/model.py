"""The configuration as frozen values. Every key, its default and its bounds are declared once.

The sections `discovery`, `gpu`, `start` and `tls_config` have modules of their own. Python names
carry units (`interval_seconds`); the file says `interval: 10s`. `description` and `examples` feed
the error messages and the generated documentation.
"""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vllm_agent.config.discovery import DiscoveryConfig
from vllm_agent.config.gpu import GpuConfig
from vllm_agent.config.match_values import (
    MAX_COMMAND_CHARACTERS,
    MAX_PATTERN_LENGTH,
    MAX_REPEATS,
    parse_container,
    parse_pattern,
    parse_unit,
)
from vllm_agent.config.problem import quoted, shown
from vllm_agent.config.start import StartConfig
from vllm_agent.config.tls import TlsConfig  # noqa: TC001 - pydantic reads the annotation
from vllm_agent.config.url import MAX_PORT, ServerUrl
from vllm_agent.config.values import (
    ApiKeyFile,
    Duration,
    Section,
    absolute_path,
    between,
    ends_within_interval,
    fail,
    interval_or,
    parsed_by,
    parsed_url,
)
from vllm_agent.lifecycle.server_names import MAX_NAME_LENGTH, is_server_name
from vllm_agent.lifecycle.states import LifecycleMode

# Twice the number of servers that one agent is measured with.
MAX_SERVERS = 2_000
# The longest name that Hugging Face allows is 96 characters; local paths are longer.
MAX_MODEL_LENGTH = 512
# Below a second a probe costs more than it tells; beyond an hour nobody waits for a verdict.
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 1.0, 3_600.0
# A millisecond is the smallest duration that can be written; /health answers at once or is stuck.
MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 0.001, 60.0
# More failed checks than this in a row are a threshold nobody meant.
MAX_FAILURE_THRESHOLD = 100
# A limit that high never ends a loop, which is what the limit is for.
MAX_RESTARTS = 1_000
MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS = 1.0, 24 * 3_600.0

DEFAULT_TIMEOUT_SECONDS = 5.0

_GLOB_CHARACTERS = frozenset("*?[")
_MONITORED_ONLY = "goes with mode: monitored only: an external server is watched by its url"


class ProbeConfig(Section):
    """How often a server is asked, and how many unanswered checks in a row make it `failed`."""

    interval_seconds: Annotated[Duration, between(MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS)] = (
        Field(10.0, alias="interval", description="Time from one check to the next, 1s to 1h.")
    )
    timeout_seconds: Annotated[
        Duration, between(MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS), ends_within_interval("a check")
    ] = Field(
        default_factory=interval_or(DEFAULT_TIMEOUT_SECONDS),
        alias="timeout",
        description=(
            "Longest wait for an answer, at most 60s and at most `interval`. "
            "Default: 5s, or `interval` where that is shorter."
        ),
    )
    failure_threshold: int = Field(
        3,
        strict=True,
        ge=1,
        le=MAX_FAILURE_THRESHOLD,
        description=(
            f"Failed checks in a row, 1 to {MAX_FAILURE_THRESHOLD}, "
            "before the server counts as failed."
        ),
    )


class RestartConfig(Section):
    """How many restarts in how short a time are reported as a crash loop."""

    max_restarts: int = Field(
        3,
        strict=True,
        ge=1,
        le=MAX_RESTARTS,
        description=(
            f"Restarts after a crash, 1 to {MAX_RESTARTS:,}, "
            "before the restart limit counts as reached."
        ),
    )
    window_seconds: Annotated[Duration, between(MIN_WINDOW_SECONDS, MAX_WINDOW_SECONDS)] = Field(
        60.0,
        alias="window",
        description="Uninterrupted time running, 1s to 1d, after which restarts are forgotten.",
    )


def _pattern(value: Any) -> re.Pattern[str]:
    if isinstance(value, re.Pattern):
        return value
    if not isinstance(value, str):
        fail(f"must be text, got {shown(value)}: put it in quotes")
    try:
        return parse_pattern(value)
    except ValueError as error:
        fail(str(error))


class MatchConfig(Section):
    """Which process of this host is the server. At least one key; all that are written hold."""

    port: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=MAX_PORT,
        description=(
            "Port that it listens on, as its own command line says: in a container, not the port "
            "that the container publishes."
        ),
    )
    systemd_unit: Annotated[StrictStr, parsed_by(parse_unit)] | None = Field(
        None,
        description=(
            "systemd service that it runs in, of the system or of a user, with or without "
            "`.service`."
        ),
    )
    container: Annotated[StrictStr, parsed_by(parse_container)] | None = Field(
        None, description="Id of its container, or the first 12 hex digits or more of it."
    )
    pid_file: Annotated[Path, PlainValidator(absolute_path("/run/vllm.pid"))] | None = Field(
        None, description="Absolute path of a file that holds the PID of its main process."
    )
    command: (
        Annotated[
            re.Pattern[str],
            PlainValidator(_pattern),
            PlainSerializer(lambda pattern: pattern.pattern, return_type=str),
        ]
        | None
    ) = Field(
        None,
        description=(
            "Python regular expression, found anywhere in the first "
            f"{MAX_COMMAND_CHARACTERS:,} characters of its arguments joined by spaces. At most "
            f"{MAX_PATTERN_LENGTH} characters, {MAX_REPEATS} of `*`, `+` and `{{m,n}}`, and no "
            "repeated group, so that a search is short whatever a command line holds."
        ),
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            keys = ", ".join(type(self).model_fields)
            fail(f"must have at least one of {keys}: write match: {{port: 8000}}")
        return self


def _mode(value: Any) -> LifecycleMode:
    if value == LifecycleMode.MANAGED:
        fail("managed is not supported by this version: write mode: monitored or mode: external")
    if value not in (LifecycleMode.MONITORED, LifecycleMode.EXTERNAL):
        fail(f"must be monitored or external, got {shown(value)}")
    return LifecycleMode(value)


class ServerConfig(Section):
    """One vLLM server."""

    name: StrictStr = Field(
        description=(
            "Label `server` of every metric, and the server's name in the API. Unique; 1 to "
            f"{MAX_NAME_LENGTH} letters, digits or `. _ @ ~ : -`, the first a letter or digit."
        ),
        examples=["llama"],
    )
    mode: Annotated[LifecycleMode, BeforeValidator(_mode)] = Field(
        LifecycleMode.MONITORED,
        description=(
            "`monitored`: runs on this host, whoever starts it; its processes are watched too. "
            "`external`: runs anywhere; watched by its URL only."
        ),
    )
    url: Annotated[ServerUrl, PlainValidator(parsed_url), PlainSerializer(str)] | None = Field(
        None,
        validate_default=True,
        description=(
            "Where the server listens: `http://host:port`, `https://host:port` or "
            "`unix:///path`, followed by vLLM's `--root-path` if it has one. One name per URL. "
            "Required for an external server. Default for a monitored one: where it is found to "
            "listen."
        ),
        examples=["http://127.0.0.1:8000"],
    )
    match: MatchConfig | None = Field(
        None,
        validate_default=True,
        description=(
            "Which process of this host is this monitored server. Of the keys below, at least "
            "one; all that are written must hold. Default: the process that listens on the port "
            "or unix socket of `url`."
        ),
    )
    model: StrictStr | None = Field(
        None,
        description="Served model name that must be listed in `/v1/models`. Default: any.",
    )
    api_key_file: ApiKeyFile | None = Field(
        None,
        description=(
            "File with the server's API key in one line. Read again for every check, so it can "
            "be rotated."
        ),
    )
    tls_config: TlsConfig | None = Field(None, description="TLS settings of an `https` URL.")
    log_file: Annotated[Path, PlainValidator(absolute_path("/var/log/vllm.log"))] | None = Field(
        None,
        description=(
            "Absolute path, on this host, of the file that this monitored server writes its log "
            "to. Default: found, where its output goes to a file, a container's log or the journal."
        ),
    )
    probe: ProbeConfig = Field(default_factory=ProbeConfig)
    start: StartConfig = Field(default_factory=StartConfig)
    restart: RestartConfig = Field(default_factory=RestartConfig)

    @field_validator("name")
    @classmethod
    def _is_label_and_path_segment(cls, value: str) -> str:
        if not is_server_name(value):
            fail(
                f"must be 1 to {MAX_NAME_LENGTH} letters, digits or . _ @ ~ : - and begin with a "
                f"letter or digit, got {quoted(value)}"
            )
        return value

    @field_validator("url")
    @classmethod
    def _external_needs_url(cls, value: ServerUrl | None, info: ValidationInfo) -> ServerUrl | None:
        if value is None and info.data.get("mode") is LifecycleMode.EXTERNAL:
            fail("is missing: write url: http://127.0.0.1:8000")
        return value

    @field_validator("match")
    @classmethod
    def _monitored_is_told_apart(
        cls, value: MatchConfig | None, info: ValidationInfo
    ) -> MatchConfig | None:
        mode = info.data.get("mode")
        if value is not None and mode is LifecycleMode.EXTERNAL:
            fail(_MONITORED_ONLY)
        # A url that is wrong itself is not in the data: one error is enough.
        if value is None and mode is LifecycleMode.MONITORED and info.data.get("url", "") is None:
            fail("is missing: write match: {port: 8000}, or the url of a server on this host")
        return value

    @field_validator("log_file", "start")
    @classmethod
    def _loads_on_this_host(cls, value: Any, info: ValidationInfo) -> Any:
        if value is not None and info.data.get("mode") is LifecycleMode.EXTERNAL:
            fail(_MONITORED_ONLY)
        return value

    @field_validator("log_file")
    @classmethod
    def _is_one_file(cls, value: Path | None) -> Path | None:
        if value is not None and _GLOB_CHARACTERS.intersection(str(value)):
            fail("must be the path of one file, without *, ? or [: write the one that it writes to")
        return value

    @field_validator("model")
    @classmethod
    def _is_model_name(cls, value: str | None) -> str | None:
        if value is not None and not (0 < len(value) <= MAX_MODEL_LENGTH and value.isprintable()):
            fail(
                f"must be 1 to {MAX_MODEL_LENGTH} printable characters, got {quoted(value)}: "
                "write a name that /v1/models lists"
            )
        return value

    @field_validator("tls_config")
    @classmethod
    def _tls_needs_https(cls, value: TlsConfig | None, info: ValidationInfo) -> TlsConfig | None:
        url = info.data.get("url")
        if value is not None and url is not None and url.scheme != "https":
            fail("goes with an https:// URL only: change the url or remove tls_config")
        return value


class ConfigFile(Section):
    """The keys of a configuration file."""

    discovery: DiscoveryConfig = Field(default_factory=DiscoveryConfig)
    gpu: GpuConfig = Field(default_factory=GpuConfig)
    servers: tuple[ServerConfig, ...] = Field(
        (), max_length=MAX_SERVERS, description=f"The servers to watch, at most {MAX_SERVERS:,}."
    )


class Config(ConfigFile):
    """A whole configuration. `source` is its file, or None where there is none.

    `default_probe`, `default_start` and `default_restart` are for servers that the file does not
    name.
    """

    source: Path | None = None
    default_probe: ProbeConfig = Field(default_factory=ProbeConfig)
    default_start: StartConfig = Field(default_factory=StartConfig)
    default_restart: RestartConfig = Field(default_factory=RestartConfig)
