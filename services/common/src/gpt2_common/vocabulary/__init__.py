"""Vocabularies of byte-level BPE, and the tokenizer artifact that holds one.

The tokenizer and the trainer both write tokenizer artifacts. Needs the package `tokenizers`, which only these two
services depend on.
"""
