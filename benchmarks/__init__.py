"""The bars of the agent, measured beside its peers in one run; `python -m benchmarks`."""
