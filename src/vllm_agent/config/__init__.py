"""The configuration: YAML file, environment and flags, as frozen values or as clear errors.

What the running agent imports from here imports neither pydantic nor YAML; `apart` says why.
"""
