"""Conversations with trained actors, on a page or in a terminal; what people find of the answers becomes training data."""
