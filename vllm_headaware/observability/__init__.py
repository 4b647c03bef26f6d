"""What an operator sees: metric families, metrics, the live page and its routes."""
