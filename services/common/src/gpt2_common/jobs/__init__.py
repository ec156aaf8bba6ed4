"""Jobs: durable, cancellable work in child processes, and the one service through which it is followed."""
