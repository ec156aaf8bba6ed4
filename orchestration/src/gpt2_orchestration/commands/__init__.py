"""Command modules of `gpt2`: models, jobs, generate, doctor, and what they share."""
