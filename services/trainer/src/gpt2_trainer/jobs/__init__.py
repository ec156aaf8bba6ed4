"""Jobs of the service: each is a function that runs in a separate child process."""
