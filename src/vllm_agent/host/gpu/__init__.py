"""What the drivers of the host's GPUs tell, and who holds the memory of each device."""
