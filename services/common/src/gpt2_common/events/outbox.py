"""The outbox: events are committed to the database with the change that they describe, and published from there."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sql

from gpt2_common.database import METADATA, insert, reading
from gpt2_common.errors import ResourceExhausted
from gpt2_contracts.events import CloudEvent

MAX_EVENT_BYTES = 1_000_000
"""Maximum bytes of a value; Kafka takes 1 MiB by default, headers included."""

_OUTBOX = sql.Table(
    "outbox",
    METADATA,
    # AUTOINCREMENT in SQLite: a position is never given twice, so that order by position is order of commit there.
    sql.Column("position", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("source", sql.String(100), nullable=False),
    sql.Column("event_id", sql.String(64), nullable=False),
    sql.Column("type", sql.String(200), nullable=False),
    sql.Column("subject", sql.String(200), nullable=False),
    sql.Column("key", sql.String(300), nullable=False),
    sql.Column("time", sql.String(40), nullable=False),
    sql.Column("data", sql.LargeBinary, nullable=False),
    sql.UniqueConstraint("source", "event_id"),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event that is not published yet, and its position in the order of commits."""

    position: int
    event: CloudEvent


def add_to_outbox(connection: sql.Connection, event: CloudEvent) -> None:
    """Adds an event within the caller's transaction. Raises ResourceExhausted when no broker would take it."""
    if len(event.data) > MAX_EVENT_BYTES:
        raise ResourceExhausted(
            f"an event of {len(event.data):,} bytes is larger than the {MAX_EVENT_BYTES:,} that a broker takes: "
            "give the job fewer or shorter outputs, or a shorter plan"
        )
    connection.execute(_OUTBOX.insert().values(_row(event)))


def republish(connection: sql.Connection, event: CloudEvent) -> bool:
    """Adds a published event again, within the caller's transaction. Returns False where it is still pending."""
    # PostgreSQL's driver reports no row count for an INSERT with RETURNING.
    added = insert(connection, _OUTBOX).values(_row(event)).on_conflict_do_nothing().returning(_OUTBOX.c.position)
    return connection.execute(added).one_or_none() is not None


def list_pending_events(
    engine: sql.Engine, source: str, limit: int, published: Collection[int] = ()
) -> list[PendingEvent]:
    """The oldest pending events of one source, in the order of their commits, without those published already."""
    # Not only those after the last: of two transactions in PostgreSQL, the one that began later can be over first.
    mine = (_OUTBOX.c.source == source, _OUTBOX.c.position.not_in(published))
    query = sql.select(_OUTBOX).where(*mine).order_by(_OUTBOX.c.position).limit(limit)
    with reading(engine) as connection:
        rows = connection.execute(query).all()
    return [
        PendingEvent(
            row.position,
            CloudEvent(
                id=row.event_id,
                source=row.source,
                type=row.type,
                subject=row.subject,
                key=row.key,
                time=datetime.fromisoformat(row.time),
                data=row.data,
            ),
        )
        for row in rows
    ]


def remove_published(engine: sql.Engine, positions: Collection[int]) -> None:
    """Removes events that the broker has. A crash before this publishes them again, with the same ids."""
    with engine.begin() as connection:
        connection.execute(_OUTBOX.delete().where(_OUTBOX.c.position.in_(positions)))


def count_pending_events(engine: sql.Engine, source: str) -> int:
    """Number of pending events of one source."""
    query = sql.select(sql.func.count()).select_from(_OUTBOX).where(_OUTBOX.c.source == source)
    with reading(engine) as connection:
        return int(connection.execute(query).scalar_one())


def _row(event: CloudEvent) -> dict[str, object]:
    return {
        "source": event.source,
        "event_id": event.id,
        "type": event.type,
        "subject": event.subject,
        "key": event.key,
        "time": event.time.astimezone(UTC).isoformat(),
        "data": event.data,
    }
