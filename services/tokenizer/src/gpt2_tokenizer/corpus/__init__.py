"""Corpora as the tokenizer sees them: documents in order, in pieces that can be encoded one by one."""
