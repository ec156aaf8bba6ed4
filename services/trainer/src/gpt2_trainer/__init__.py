"""The trainer: GPT-2 itself, trained, exported and heard."""
