"""Prompts and texts: reading, encoding, splitting."""
