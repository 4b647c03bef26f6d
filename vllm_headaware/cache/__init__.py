"""What each head class holds in vLLM's block pool: specs, managers, groups, census."""
