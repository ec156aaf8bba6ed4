"""The claim of an attempt on its job's folders: the one that began last writes there, every earlier one ends.

Leases and TrainJobs keep two attempts apart, until a replica stands still, a node is cut off, or a pod is slow to stop.
A claim is a file with a token that each attempt replaces when it begins, and reads again before whatever it publishes.
"""

import os
import socket
import tempfile
import uuid
from pathlib import Path

from gpt2_common.errors import JobSuperseded

CLAIM_FILE = "attempt"


class Claim:
    """The claim of one attempt.

    Args:
        folder: The job's work folder.
        token: What the file held when the attempt began.
    """

    def __init__(self, folder: Path, token: str) -> None:
        self._file = folder / CLAIM_FILE
        self.token = token

    @classmethod
    def take(cls, folder: Path) -> "Claim":
        """Makes the folder this process's, and takes it from any other. Raises OSError when it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        token = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"
        # Under its own name, as two attempts can begin at once: the later rename counts.
        descriptor, part = tempfile.mkstemp(prefix=f".{CLAIM_FILE}-", dir=folder)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(token)
        Path(part).replace(folder / CLAIM_FILE)
        return cls(folder, token)

    def check(self) -> None:
        """Raises JobSuperseded when another attempt has begun, or the job has ended and its work is deleted."""
        try:
            found = self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            found = ""
        if found != self.token:
            by = f", as {found.rpartition('/')[0]}" if found else ""
            raise JobSuperseded(f"another attempt of this job works in {self._file.parent}{by}: this one ends")
