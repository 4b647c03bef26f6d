"""Maintainers' scripts: the demo model, servers to look at, baselines."""
