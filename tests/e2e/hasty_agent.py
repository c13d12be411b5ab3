"""The agent, with next to no delay before a restart: for tests of very many restarts."""

from __future__ import annotations

import sys
from unittest import mock

from vllm_agent.cli.program import main
from vllm_agent.lifecycle import supervision

DELAY_SECONDS = 0.05
"""The configuration allows no less than 2 s, and each restart in a row doubles it."""

if __name__ == "__main__":
    with mock.patch.object(supervision, "delay_seconds", return_value=DELAY_SECONDS):
        sys.exit(main())
