"""Training a language model on preferences directly, without a reward model: DPO and its relatives, on TRL's trainers."""
