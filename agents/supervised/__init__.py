"""Training on records with Hugging Face's Trainer: fine-tuning, reward models, preference losses."""
