"""Witnesses of a load: what tells from outside how far a starting vLLM is, one module each."""
