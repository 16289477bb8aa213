"""A training run and its folder: settings, checkpoints, logs, picture."""
