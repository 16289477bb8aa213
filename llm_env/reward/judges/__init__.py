"""Judges that are language models: they are asked in words which of two responses is better, or for a grade."""
