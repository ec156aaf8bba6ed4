"""How good a model is: perplexity on a dataset, and LAMBADA last-word accuracy."""
