"""Touches in the engine core: groups, admission, the census, eviction by score."""
