"""The demonstration: the whole pipeline on text that every machine with Python has."""
