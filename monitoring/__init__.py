"""Monitoring as code: queries, panels, and what is generated from them. Not part of the plugin."""
