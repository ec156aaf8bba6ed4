"""The embedded stack: every server that the pipeline needs, as local processes under one supervisor.

MongoDB and Kafka are stand-ins that speak the real protocols; MLflow, TensorBoard, the four services and the dashboard
are the real ones. It is for development on one machine: it listens on 127.0.0.1 only, and the Kafka stand-in has no
storage.

    running.py      start here: the stack as a context manager, and in the foreground until a signal
    control.py      asks about a stack that another process runs
    stopping.py     stops one
    definitions.py  what the nine processes are
    supervisor.py   starts them, restarts what crashes, stops them in order
    mongodb/        the MongoDB stand-in
    orphan_reaper.py  ends them when the supervisor itself is killed

Nothing is imported here, so that the small processes started with `python -m` from this package stay small.
"""

FOLDER_VARIABLE = "GPT2_STACK_FOLDER"
"""Names the folder of the stack whose servers a command uses."""
