"""The command line: one module per command, each imported only when it is the one to run."""

from vllm_agent.cli.program import main

__all__ = ["main"]
