"""Starts the managed servers of this host, and ends what is left of them."""
