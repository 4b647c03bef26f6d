"""Prompts with known answers, for calibration and evaluation; their splits never meet."""
