"""Fast paths of the operations in `model/gpt2.py`; `selection.py` chooses among them.

Each file states its gain, and where it was measured.
"""
