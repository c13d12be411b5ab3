"""vllm-agent: a Prometheus exporter and monitoring agent for vLLM servers."""

from __future__ import annotations

__version__: str


def __getattr__(name: str) -> str:
    # Reading the installed metadata takes 30 ms, which most commands never need.
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version  # noqa: PLC0415 - see above

    globals()[name] = version("vllm-agent")
    return str(globals()[name])
