"""Encoding: texts into token ids and back, by whichever library is exact and fastest."""
