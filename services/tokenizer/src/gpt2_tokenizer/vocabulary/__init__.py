"""Vocabularies of byte-level BPE: what they are, how they are stored, and how others' files become ours."""
