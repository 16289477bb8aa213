"""Feedback in conversations: what users say of an answer in their next turn, found in chat logs and made training data."""
