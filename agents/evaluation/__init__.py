"""Comparing a trained actor with its reference."""
