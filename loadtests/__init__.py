"""Load scenarios against the real server."""
