"""The stand-in vLLM and the demonstration built from it."""
