"""Rewards: reward models, the reference, the KL penalty, and the formula that puts them together."""
