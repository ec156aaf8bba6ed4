"""The embedded stack: every server that the pipeline needs, as local processes under one supervisor.

MongoDB and Kafka are stand-ins that speak the real protocols; MLflow, TensorBoard, the four services and the dashboard
are themselves. It is for trying things out on one machine: all of it listens on 127.0.0.1 alone, and the Kafka stand-in
keeps nothing on disk.

    running.py      start here: the stack as a context manager, and in the foreground until a signal
    control.py      asks about a stack that another process runs
    stopping.py     stops one
    definitions.py  what the nine processes are
    supervisor.py   starts them, restarts what crashes, stops them in order
    mongodb/        the MongoDB stand-in
    guard.py        ends them when the supervisor itself is killed

Nothing is imported here, so that the small processes started with `python -m` from this package stay small.
"""
