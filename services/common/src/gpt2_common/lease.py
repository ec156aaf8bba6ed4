"""Leases: of several replicas, one at a time does what a name stands for. They are rows with an end, by the
database's clock; a replica that dies loses its lease when that end has come, or at once where its death can be seen.
"""

import time

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError

from gpt2_common.database import METADATA, clock
from gpt2_common.replica import Replica

_RENEWALS = 6
"""In the time of a lease. A holder that is asked between them need not ask the database."""

_LEASES = sql.Table(
    "leases",
    METADATA,
    sql.Column("name", sql.String(100), primary_key=True),
    sql.Column("holder", sql.String(300), nullable=False),
    sql.Column("until", sql.Float, nullable=False),
)


class Lease:
    """One lease, as one replica sees it.

    Args:
        engine: Where it is kept.
        name: What it is for.
        replica: Who wants it.
        seconds: How long it lasts unless it is renewed.
    """

    def __init__(self, engine: sql.Engine, name: str, replica: Replica, seconds: float) -> None:
        self._seconds = seconds
        self._engine = engine
        self._name = name
        self._replica = replica
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
        self._renew_at = asked + self._seconds / _RENEWALS if held else 0.0
        return held

    def release(self) -> None:
        """Gives it up, where it is held."""
        self._renew_at = 0.0
        mine = (_LEASES.c.name == self._name, _LEASES.c.holder == str(self._replica))
        with self._engine.begin() as connection:
            connection.execute(_LEASES.delete().where(*mine))

    def _hold(self, connection: sql.Connection) -> bool:
        query = sql.select(_LEASES).where(_LEASES.c.name == self._name)
        row = connection.execute(query.with_for_update()).one_or_none()
        now = clock(connection)
        values = {"holder": str(self._replica), "until": now + self._seconds}
        if row is None:
            connection.execute(_LEASES.insert().values(name=self._name, **values))
        elif row.holder == str(self._replica) or is_over(row.holder, row.until, now):
            connection.execute(_LEASES.update().where(_LEASES.c.name == self._name).values(**values))
        else:
            return False
        return True


def is_over(holder: str | None, until: float | None, now: float) -> bool:
    """Whether a lease may be taken from its holder."""
    return holder is None or until is None or until < now or Replica.parse(holder).is_gone()
