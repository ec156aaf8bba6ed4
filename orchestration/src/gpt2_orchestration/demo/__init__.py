"""The demonstration: the whole pipeline on text that every Python installation has."""
