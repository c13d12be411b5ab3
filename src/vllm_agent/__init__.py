"""vllm-agent: a Prometheus exporter and monitoring agent for vLLM servers."""

from importlib.metadata import version

__version__ = version("vllm-agent")
