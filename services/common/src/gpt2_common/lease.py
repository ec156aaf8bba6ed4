"""Leases: one replica at a time does what a lease is for.

A lease is a holder and an expiry by the database's clock: a row in a table, or two columns of a job's row. A replica
that has died loses it at the expiry, or at once where its process is seen to be gone.
"""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from gpt2_common.database import METADATA, clock

_RENEWALS = 6
"""In the time of a lease. A holder that is asked between them need not ask the database."""

_LEASES = sql.Table(
    "leases",
    METADATA,
    sql.Column("name", sql.String(100), primary_key=True),
    sql.Column("holder", sql.String(300), nullable=False),
    sql.Column("until", sql.Float, nullable=False),
)


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """A replica: one process of a service, as the holder of leases."""

    name: str
    """Its machine and namespace of processes, its id there, and when it started, in clock ticks since the machine
    did, which distinguishes it from a later process with its id."""
    seconds: float
    """How long its leases last unless they are renewed."""

    @classmethod
    def this_process(cls, seconds: float) -> "LeaseHolder":
        """This process."""
        pid = os.getpid()
        return cls(f"{_host()}/{pid}/{_start_ticks(pid) or 0}", seconds)

    def expiry(self, connection: sql.Connection) -> float:
        """When a lease ends that this replica takes or renews now."""
        return clock(connection) + self.seconds


class Lease:
    """A lease by name, as one replica sees it.

    Args:
        engine: Where it is kept.
        name: What it is for.
        holder: This replica.
    """

    def __init__(self, engine: sql.Engine, name: str, holder: LeaseHolder) -> None:
        self._engine = engine
        self._name = name
        self._holder = holder
        self._renew_at = 0.0

    def hold(self) -> bool:
        """Takes the lease, or renews it when a part of it is over. Returns whether this replica holds it now."""
        asked = time.monotonic()
        if asked < self._renew_at:
            return True
        try:
            with self._engine.begin() as connection:
                held = self._hold(connection)
        except IntegrityError:
            return False  # another replica was first to insert it
        self._renew_at = asked + self._holder.seconds / _RENEWALS if held else 0.0
        return held

    def release(self) -> None:
        """Gives it up, where it is held."""
        self._renew_at = 0.0
        own = (_LEASES.c.name == self._name, _LEASES.c.holder == self._holder.name)
        with self._engine.begin() as connection:
            connection.execute(_LEASES.delete().where(*own))

    def _hold(self, connection: sql.Connection) -> bool:
        query = sql.select(_LEASES).where(_LEASES.c.name == self._name)
        row = connection.execute(query.with_for_update()).one_or_none()
        values = {"holder": self._holder.name, "until": self._holder.expiry(connection)}
        if row is None:
            connection.execute(_LEASES.insert().values(name=self._name, **values))
        elif row.holder == self._holder.name or has_expired(row.holder, row.until, clock(connection)):
            connection.execute(_LEASES.update().where(_LEASES.c.name == self._name).values(**values))
        else:
            return False
        return True


def has_expired(holder: str | None, expiry: float | None, now: float) -> bool:
    """Whether another replica may take a lease: its time is over, or its holder's process is gone."""
    return holder is None or expiry is None or expiry < now or _is_gone(holder)


def _is_gone(holder: str) -> bool:
    """Whether a replica's process has certainly ended. Of one on another machine, this one cannot know."""
    host, pid, started = holder.rsplit("/", 2)
    return host == _host() and _start_ticks(int(pid)) != int(started)


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{socket.gethostname()}:{boot.read_text().strip()}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}:{os.getpid()}"


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
