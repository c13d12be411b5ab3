"""The stand-in vLLM against recordings of a real one."""
