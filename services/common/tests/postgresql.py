"""A PostgreSQL server of a test's own, which it can stop and start."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from gpt2_orchestration.stack.ports import choose_ports

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
# PostgreSQL refuses to run as root.
USER = "postgres" if os.getuid() == 0 else None


class PostgreSql:
    """One server with an empty database. Skips the test where PostgreSQL is not installed."""

    def __init__(self) -> None:
        if PROGRAMS is None:
            pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
        self._port = choose_ports({"postgresql": 0})["postgresql"]
        self.url = f"postgresql://gpt2@127.0.0.1:{self._port}/postgres"
        # Apart from pytest's: those above pytest's are closed to other users.
        self._folder = Path(tempfile.mkdtemp(prefix="gpt2-postgresql-"))
        if USER is not None:
            account = pwd.getpwnam(USER)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        create = [str(PROGRAMS / "initdb"), "-D", self._data, "-U", "gpt2", "--auth=trust", "--no-sync"]
        subprocess.run(create, check=True, capture_output=True, cwd="/", user=USER)

    def start(self) -> "PostgreSql":
        options = ("-h", "127.0.0.1", "-p", str(self._port), "-k", str(self._folder))
        self._server = subprocess.Popen(
            [str(PROGRAMS / "postgres"), "-D", self._data, *options], cwd="/", user=USER, stderr=subprocess.DEVNULL
        )
        ready = [str(PROGRAMS / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self._port)]
        deadline = time.monotonic() + 60
        while subprocess.run(ready).returncode != 0:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return self

    def stop(self) -> None:
        """Stops it, and ends all connections."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(30)

    def remove(self) -> None:
        """Stops it for good."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> str:
        return str(self._folder / "data")
