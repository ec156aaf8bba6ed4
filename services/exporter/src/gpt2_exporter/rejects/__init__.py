"""Documents that are left out of a corpus: why, how many may be, and what users can do about it."""
