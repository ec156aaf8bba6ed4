"""The service's jobs: each is a function that a child process of its own calls."""
