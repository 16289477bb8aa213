"""Reward models from preferences: losses, training, report."""
