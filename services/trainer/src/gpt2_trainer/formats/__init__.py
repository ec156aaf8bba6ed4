"""File formats of weights and tokenizers: our checkpoints, OpenAI's, Hugging Face's, PEFT's, SavedModels."""
