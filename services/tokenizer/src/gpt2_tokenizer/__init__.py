"""The tokenizer: byte-level BPE vocabularies, and corpora encoded with them."""
