"""What `faults.py` is made of: the faults, the commands that they befall, and the trials."""
