"""An oracle for whole models, and tiny models to ask it about."""
