"""What only a real NVIDIA GPU can show; run by `make test-gpu`."""
