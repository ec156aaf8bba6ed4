"""What the trainer's tests share. Kept out of `conftest.py` so that child processes can import it."""
