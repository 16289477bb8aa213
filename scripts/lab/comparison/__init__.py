"""What `scripts/lab/compare.py` is made of."""
