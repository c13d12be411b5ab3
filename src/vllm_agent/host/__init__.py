"""The outside world, one module per thing; each is the only importer of its library."""
