"""A vLLM 0.32 server without a model: real processes, ports, logs and endings.

Components are forked before any event loop exists and sleep in `poll` until a signal,
a pipe or a deadline wakes them, so that dozens of servers fit on a small machine.
"""
