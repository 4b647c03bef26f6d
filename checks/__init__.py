"""Checks against the real server; each is a make target, and its last line is JSON."""
