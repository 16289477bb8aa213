"""Language models as the environment and the policies use them: loading, decoding, packed passes, log-probabilities."""
