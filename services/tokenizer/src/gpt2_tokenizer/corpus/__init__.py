"""Corpora: reading their documents in order, and selecting documents by hash."""
