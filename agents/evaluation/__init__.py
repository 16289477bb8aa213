"""Comparing a trained actor with its reference: scores with intervals, diversity, perplexity."""
