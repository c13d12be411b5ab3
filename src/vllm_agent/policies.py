"""What decisions about a server need to know, from the configuration and from what is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vllm_agent.config.choices import DiscoveryPage
from vllm_agent.host.secret_shapes import without_shapes
from vllm_agent.lifecycle.server_life import Policy
from vllm_agent.lifecycle.states import LifecycleMode

if TYPE_CHECKING:
    from vllm_agent.config.model import Config, ServerConfig
    from vllm_agent.lifecycle.server_life import Memory
    from vllm_agent.observations import Sighting


def policy_of(config: Config, server: ServerConfig | None, sighting: Sighting | None) -> Policy:
    """The policy for a server, configured or (None) discovered, whose main process was seen."""
    probe = config.default_probe if server is None else server.probe
    start = config.default_start if server is None else server.start
    restart = config.default_restart if server is None else server.restart
    policy = Policy(
        failure_threshold=probe.failure_threshold,
        max_restarts=restart.max_restarts,
        restart_window_seconds=restart.window_seconds,
        is_local=server is None or server.mode is not LifecycleMode.EXTERNAL,
        has_http=sighting is None or not sighting.command.is_headless,
        is_wanted=server is not None or _is_wanted(config, sighting),
        start_timeout_seconds=start.start_timeout_seconds,
        load_timeout_seconds=start.load_timeout_seconds,
    )
    if server is None:
        return policy
    if server.mode is LifecycleMode.MANAGED:
        return _managed(policy, server, sighting)
    # As the names that it is compared with.
    return replace(policy, expected_model=server.model and without_shapes(server.model))


def policy_of_memory(memory: Memory) -> Policy:
    """The policy for a discovered server that an agent before this one knew."""
    return Policy(is_local=True, is_wanted=memory.is_wanted)


def is_other_launch(before: ServerConfig, after: ServerConfig) -> bool:
    """Whether a managed server would be started otherwise than it was."""
    if after.mode is not LifecycleMode.MANAGED or before.mode is not LifecycleMode.MANAGED:
        return False
    return _how_started(before) != _how_started(after)


def _how_started(server: ServerConfig) -> tuple[object, ...]:
    managed = server.managed
    return (
        (server.model, server.url, server.api_key_file),
        (managed.command, managed.args, managed.env, managed.user, managed.served_model_name),
        (managed.tensor_parallel_size, managed.pipeline_parallel_size),
        (managed.gpu_memory_utilization, managed.airgapped),
    )


def _managed(policy: Policy, server: ServerConfig, sighting: Sighting | None) -> Policy:
    served = None if sighting is None else sighting.command.served_name
    return replace(
        policy,
        expected_model=served and without_shapes(served),
        is_managed=True,
        model=server.model,
        restart_delay_seconds=server.restart.delay_seconds,
        restarts_unhealthy=server.restart.on_unhealthy,
        is_dry_run=server.restart.dry_run,
        stop_timeout_seconds=server.managed.stop_timeout_seconds,
    )


def _is_wanted(config: Config, sighting: Sighting | None) -> bool:
    if config.discovery.page is DiscoveryPage.ALL:
        return True
    return sighting is not None and sighting.is_supervised
