"""Callbacks: metrics, the adaptive KL coefficient, refreshes of reference and masks, token budgets."""
