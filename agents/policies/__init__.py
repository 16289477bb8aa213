"""Policies of stable-baselines3 on language models."""
