"""Touches in the workers: split layers, inputs of a step, clean blocks."""
