"""How good a model is: perplexity on a dataset, and last words of texts guessed."""
