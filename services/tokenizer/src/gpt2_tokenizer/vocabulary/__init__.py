"""Vocabularies: trained on a corpus, or downloaded."""
