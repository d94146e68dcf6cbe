"""What is computed from a clip."""
