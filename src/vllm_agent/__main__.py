"""`python -m vllm_agent` is the command `vllm-agent`."""

from __future__ import annotations

import sys

from vllm_agent.cli import main

sys.exit(main())
