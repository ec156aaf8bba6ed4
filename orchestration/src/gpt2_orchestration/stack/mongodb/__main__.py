"""`python -m gpt2_orchestration.stack.mongodb FOLDER HOST:PORT`: serves MongoDB's protocol until a signal ends it."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from gpt2_orchestration.stack.mongodb.commands import Commands
from gpt2_orchestration.stack.mongodb.store import Store
from gpt2_orchestration.stack.mongodb.wire import WireServer


def main(arguments: Sequence[str]) -> None:
    """Serves until a signal ends the process."""
    parser = argparse.ArgumentParser(description="A MongoDB stand-in for one machine, over SQLite.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("address")
    options = parser.parse_args(arguments)
    host, _, port = options.address.rpartition(":")
    store = Store(options.folder)
    with WireServer((host, int(port)), Commands(store).answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"listens on {options.address}", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        server.shutdown()
    store.close()


if __name__ == "__main__":
    # Before threads start, which inherit the mask: else one of them would take the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1:])
