"""The section `discovery`: which vLLM servers of this host are found, and what is read of them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vllm_agent.config.choices import DiscoveryPage
from vllm_agent.config.problem import shown
from vllm_agent.config.values import Duration, Section, between, fail

# Prometheus scrapes once a minute unless told otherwise: an end must be seen once at least. After
# a week the history of a server that is gone goes too.
MIN_FORGET_SECONDS, MAX_FORGET_SECONDS = 60.0, 7 * 24 * 3_600.0
# Beyond any host's number of GPUs; each server costs up to 160 series.
MAX_DISCOVERED_SERVERS = 1_000


def _page(value: Any) -> DiscoveryPage:
    try:
        return DiscoveryPage(value)
    except ValueError:
        fail(f"must be {' or '.join(DiscoveryPage)}, got {shown(value)}")


class DiscoveryConfig(Section):
    """How vLLM servers that nobody configured are found on this host."""

    enabled: bool = Field(
        default=True,
        strict=True,
        description=(
            "Watch every vLLM server that runs on this host. `false`: only those below `servers`."
        ),
    )
    page: Annotated[DiscoveryPage, BeforeValidator(_page)] = Field(
        DiscoveryPage.SUPERVISED,
        description=(
            "Which discovered servers have `vllm_agent_server_desired_up`, so that alerts page for "
            "them: `supervised`, those of a systemd service or a container, or `all`."
        ),
    )
    forget_after_seconds: Annotated[Duration, between(MIN_FORGET_SECONDS, MAX_FORGET_SECONDS)] = (
        Field(
            3_600.0,
            alias="forget_after",
            description=(
                "Time after which a discovered server that was stopped leaves the metrics, "
                "1m to 1w. One that crashed stays for a day at least."
            ),
        )
    )
    max_servers: int = Field(
        32,
        strict=True,
        ge=1,
        le=MAX_DISCOVERED_SERVERS,
        description=(
            f"Discovered servers to watch at a time, 1 to {MAX_DISCOVERED_SERVERS:,}; any user of "
            "the host can start processes that look like one. As many again that ended are kept, "
            "first of all those whose crash somebody is paged for. Others are counted in "
            "`vllm_agent_dropped_total`."
        ),
    )
    read_environ: bool = Field(
        default=True,
        strict=True,
        description=(
            "Read, of the environment of a vLLM, where it keeps its model and its compiled code, "
            "whether it is offline, and what must not be shown of its log (`HF_HOME` and a handful "
            "more; of secrets digests). `false`: nothing, for the price of a load that shows less: "
            "see [load-progress.md](load-progress.md#privacy)."
        ),
    )
    ask_hub: bool = Field(
        default=False,
        strict=True,
        description=(
            "Ask the Hugging Face Hub how large a model is while it is being downloaded. What "
            "leaves this host is the name of the model, its revision and the version of the "
            "agent; no token. Never asked where the agent or the server is offline "
            "(`HF_HUB_OFFLINE`)."
        ),
    )
