"""Preferences: responses to rank, rankings of them by people or judges, and what becomes of them."""
