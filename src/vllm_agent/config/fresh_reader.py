"""Reads the configuration for an agent that runs: `python -m vllm_agent.config.fresh_reader`.

Standard input has the path and the environment, standard output what `apart` makes of them.
"""

from __future__ import annotations

import pickle
import sys

from vllm_agent import __version__
from vllm_agent.config.apart import outcome


def main() -> int:
    """Reads, answers, and gives the exit code."""
    # From the agent that started this process, through a pipe that nobody else has.
    path, environ = pickle.load(sys.stdin.buffer)  # noqa: S301 - see above
    output = sys.stdout.buffer
    # What anything prints must not be taken for a part of the answer.
    sys.stdout = sys.stderr
    # The agent takes apart what its own version put together, and nothing else.
    output.write(f"{__version__}\n".encode() + outcome(path, environ))
    output.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
