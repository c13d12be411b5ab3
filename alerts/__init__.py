"""Alert rules as code: `python -m alerts` writes `alerts/vllm-agent.rules.yml`."""
