"""`python launch.py COMMAND...`: waits for one byte on standard input, then becomes COMMAND.

The supervisor sends the byte once the orphan reaper knows the process. If the supervisor is killed before that,
standard input ends instead, and no process is left running.
"""

import os
import sys


def main() -> None:
    """Becomes the command, or exits when the supervisor is gone."""
    if not os.read(0, 1):
        sys.exit(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
