"""The algorithms: a table of them, the factory that wires them, and the losses that stock PPO cannot say."""
