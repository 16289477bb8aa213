"""Callbacks for stable-baselines3: metrics, the adaptive KL coefficient, refreshes of reference and masks, token budgets."""
