"""What is known of a model before it is loaded: its id, what of it is here, how large it is."""
