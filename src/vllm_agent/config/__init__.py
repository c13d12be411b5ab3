"""The configuration: YAML file, environment and flags, as frozen values or as clear errors."""

from vllm_agent.config.duration import format_duration, parse_duration
from vllm_agent.config.files import read_api_key
from vllm_agent.config.flags import LogFormat, LogLevel, Settings, add_to, resolve
from vllm_agent.config.gpu import GpuConfig, GpuUse
from vllm_agent.config.listen_address import ListenAddress, parse_listen_address
from vllm_agent.config.load import load
from vllm_agent.config.match import matches
from vllm_agent.config.model import (
    Config,
    DiscoveryConfig,
    DiscoveryPage,
    MatchConfig,
    ProbeConfig,
    RestartConfig,
    ServerConfig,
)
from vllm_agent.config.problem import ConfigError, Problem
from vllm_agent.config.tls import TlsConfig
from vllm_agent.config.url import ServerUrl, parse_server_url

__all__ = [
    "Config",
    "ConfigError",
    "DiscoveryConfig",
    "DiscoveryPage",
    "GpuConfig",
    "GpuUse",
    "ListenAddress",
    "LogFormat",
    "LogLevel",
    "MatchConfig",
    "ProbeConfig",
    "Problem",
    "RestartConfig",
    "ServerConfig",
    "ServerUrl",
    "Settings",
    "TlsConfig",
    "add_to",
    "format_duration",
    "load",
    "matches",
    "parse_duration",
    "parse_listen_address",
    "parse_server_url",
    "read_api_key",
    "resolve",
]
