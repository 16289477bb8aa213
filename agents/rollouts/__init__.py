"""What happens between policy and algorithm: the `VecEnv`, the buffers, the advantages."""
