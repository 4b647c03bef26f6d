"""Tasks that tell whether a model still knows what it read."""
