"""Datasets: corpora as shards of token ids, split into training and validation."""
