"""Probe tasks: tiny language tasks with an exact optimum, on which a right algorithm succeeds within seconds."""
