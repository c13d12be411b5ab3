"""The configuration as frozen values. Every key, its default and its bounds are declared once.

Most sections have modules of their own. Python names carry units (`interval_seconds`); the file
says `interval: 10s`. `description` and `examples` feed the error messages and the generated
documentation.
"""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - pydantic reads the annotation
from types import MappingProxyType
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
from vllm_agent.config.managed import ManagedConfig
from vllm_agent.config.match_values import (
    MAX_COMMAND_CHARACTERS,
    MAX_PATTERN_LENGTH,
    MAX_REPEATS,
    parse_container,
    parse_pattern,
    parse_unit,
)
from vllm_agent.config.model_id import MAX_MODEL_LENGTH, why_no_model
from vllm_agent.config.problem import quoted, shown
from vllm_agent.config.restart import MANAGED_ONLY, RestartConfig
from vllm_agent.config.start import StartConfig
from vllm_agent.config.this_host import is_of_this_host
from vllm_agent.config.tls import TlsConfig  # noqa: TC001 - pydantic reads the annotation
from vllm_agent.config.url import MAX_PORT, ServerUrl, parse_server_url
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
# Below a second a probe costs more than it tells; beyond an hour nobody waits for a verdict.
MIN_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS = 1.0, 3_600.0
# A millisecond is the smallest duration that can be written; /health answers at once or is stuck.
MIN_TIMEOUT_SECONDS, MAX_TIMEOUT_SECONDS = 0.001, 60.0
# More failed checks than this in a row are a threshold nobody meant.
MAX_FAILURE_THRESHOLD = 100

DEFAULT_TIMEOUT_SECONDS = 5.0
# Where vLLM listens unless told otherwise.
DEFAULT_MANAGED_URL = "http://127.0.0.1:8000"

_GLOB_CHARACTERS = frozenset("*?[")
_NOT_EXTERNAL = "does not go with mode: external: such a server is watched by its url"
_NOT_MANAGED = MappingProxyType(
    {
        "match": "does not go with mode: managed: the agent knows the processes that it starts",
        "log_file": "does not go with mode: managed: its log is kept in the folder of --state.dir",
    }
)
_MANAGED_ONLY = "goes with mode: managed only: the agent starts and stops no other server"


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
    try:
        return LifecycleMode(value)
    except ValueError:
        fail(f"must be monitored, external or managed, got {shown(value)}")


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
            "`external`: runs anywhere; watched by its URL only. `managed`: started, restarted and "
            "stopped by the agent; watched as a monitored one."
        ),
    )
    url: Annotated[ServerUrl, PlainValidator(parsed_url), PlainSerializer(str)] | None = Field(
        None,
        validate_default=True,
        description=(
            "Where the server listens: `http://host:port`, `https://host:port` or "
            "`unix:///path`, followed by vLLM's `--root-path` if it has one. One name per URL. "
            "Required for an external server. Default for a monitored one: where it is found to "
            "listen. A managed one is told to listen there: `http` or `unix` on this host; "
            f"default `{DEFAULT_MANAGED_URL}`, and `http://0.0.0.0:8000` for all addresses."
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
        validate_default=True,
        description=(
            "Served model name that must be listed in `/v1/models`. Default: any. Of a managed "
            "server, required: the model to start it with, `organization/name` or a path."
        ),
    )
    api_key_file: ApiKeyFile | None = Field(
        None,
        description=(
            "File with the server's API key in one line. Read again for every check, so it can "
            "be rotated. A managed server is started with it (`VLLM_API_KEY`)."
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
    managed: ManagedConfig = Field(
        default_factory=ManagedConfig,
        description="With `mode: managed` only: how the agent starts and stops it.",
    )

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
    def _is_where_its_mode_allows(
        cls, value: ServerUrl | None, info: ValidationInfo
    ) -> ServerUrl | None:
        mode = info.data.get("mode")
        if value is None and mode is LifecycleMode.EXTERNAL:
            fail(f"is missing: write url: {DEFAULT_MANAGED_URL}")
        if mode is not LifecycleMode.MANAGED:
            return value
        if value is None:
            return parse_server_url(DEFAULT_MANAGED_URL)
        if value.scheme == "https":
            fail("must be http:// or unix:// with mode: managed: the agent asks it on this host")
        # Which addresses this host has is read where a file of configuration is loaded.
        if value.host is not None and info.context is not None and not is_of_this_host(value.host):
            fail(
                f"must be on this host with mode: managed: write url: {DEFAULT_MANAGED_URL}, or "
                "http://0.0.0.0:8000 for all its addresses"
            )
        return value

    @field_validator("match", "log_file", "start")
    @classmethod
    def _goes_with_its_mode(cls, value: Any, info: ValidationInfo) -> Any:
        mode = info.data.get("mode")
        if value is not None and mode is LifecycleMode.EXTERNAL:
            fail(_NOT_EXTERNAL)
        why = _NOT_MANAGED.get(f"{info.field_name}")
        if value is not None and mode is LifecycleMode.MANAGED and why is not None:
            fail(why)
        return value

    @field_validator("match")
    @classmethod
    def _monitored_is_told_apart(
        cls, value: MatchConfig | None, info: ValidationInfo
    ) -> MatchConfig | None:
        is_monitored = info.data.get("mode") is LifecycleMode.MONITORED
        # A url that is wrong itself is not in the data: one error is enough.
        if value is None and is_monitored and info.data.get("url", "") is None:
            fail("is missing: write match: {port: 8000}, or the url of a server on this host")
        return value

    @field_validator("log_file")
    @classmethod
    def _is_one_file(cls, value: Path | None) -> Path | None:
        if value is not None and _GLOB_CHARACTERS.intersection(str(value)):
            fail("must be the path of one file, without *, ? or [: write the one that it writes to")
        return value

    @field_validator("model")
    @classmethod
    def _is_model(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("mode") is LifecycleMode.MANAGED:
            if value is None:
                fail("is missing: write model: organization/name, the model to start it with")
            if why := why_no_model(value):
                fail(f"{why}, got {quoted(value)}")
        elif value is not None and not (0 < len(value) <= MAX_MODEL_LENGTH and value.isprintable()):
            fail(
                f"must be 1 to {MAX_MODEL_LENGTH} printable characters, got {quoted(value)}: "
                "write a name that /v1/models lists"
            )
        return value

    @field_validator("restart")
    @classmethod
    def _restarts_what_it_starts(cls, value: RestartConfig, info: ValidationInfo) -> RestartConfig:
        mode = info.data.get("mode", LifecycleMode.MANAGED)
        if mode is not LifecycleMode.MANAGED:
            fields = RestartConfig.model_fields
            written = [name for name in MANAGED_ONLY if name in value.model_fields_set]
            if written:
                keys = ", ".join(fields[name].alias or name for name in written)
                fail(f"{keys}: {_MANAGED_ONLY}")
        return value

    @field_validator("managed")
    @classmethod
    def _manages_what_it_starts(cls, value: ManagedConfig, info: ValidationInfo) -> ManagedConfig:
        if info.data.get("mode", LifecycleMode.MANAGED) is not LifecycleMode.MANAGED:
            fail(f"{_MANAGED_ONLY}: write mode: managed")
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

    `warnings` is what to log of what was ignored, a sentence each. `default_probe`,
    `default_start` and `default_restart` are for servers that the file does not name.
    """

    source: Path | None = None
    warnings: tuple[str, ...] = ()
    default_probe: ProbeConfig = Field(default_factory=ProbeConfig)
    default_start: StartConfig = Field(default_factory=StartConfig)
    default_restart: RestartConfig = Field(default_factory=RestartConfig)
