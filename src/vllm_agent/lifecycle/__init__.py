"""The lifecycle of a vLLM server: pure values and functions, standard library only.

Nothing here waits, logs, does I/O or reads a clock.
"""
