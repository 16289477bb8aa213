"""What `scripts/lab/benchmark.py` runs: a case, and the contenders that work through it, each in a process of its own."""
