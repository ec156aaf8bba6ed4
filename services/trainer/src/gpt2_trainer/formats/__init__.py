"""The files that weights and tokenizers come and go in: our checkpoints, OpenAI's, Hugging Face's, SavedModels."""
