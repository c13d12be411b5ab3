"""The real huggingface_hub against a stand-in for the Hub."""
