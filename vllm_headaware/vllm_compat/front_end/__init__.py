"""Touches in the API server: flags, refusals, checks of requests, metrics, routes."""
