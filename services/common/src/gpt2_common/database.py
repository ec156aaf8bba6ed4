"""The database of a service: jobs, the outbox, events received. SQLite by default, PostgreSQL for several replicas.

Tables of several modules are in one metadata, so that one transaction covers them all.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import sqlalchemy as sql
from sqlalchemy.exc import OperationalError

from gpt2_common.settings import ServiceSettings, SettingsError

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite

METADATA = sql.MetaData()
"""Metadata that the tables of jobs and events share."""

_SCHEMA_LOCK = 4711
_READS = "gpt2_reads"
_HOLDS_WRITE_LOCK = "gpt2_holds_write_lock"
_LOCK_SECONDS = 30
_SQLITE_POLL_SECONDS = 5.0


def database_url(service: str, settings: ServiceSettings) -> str:
    """The URL of a service's database: the setting, or a SQLite file in `.gpt2/`, which is created when missing."""
    if settings.database_url:
        return settings.database_url
    folder = Path(".gpt2").absolute()
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder / service}.db"


@contextmanager
def open_database(url: str) -> Iterator[sql.Engine]:
    """Connects to the database and creates the tables, columns and indexes that are missing.

    Raises:
        SettingsError: The database cannot be used.
    """
    # `postgresql://` alone would ask for a driver that is not installed.
    scheme = urlsplit(url).scheme
    url = url.replace(scheme, "postgresql+psycopg", 1) if scheme in ("postgres", "postgresql") else url
    try:
        engine = sql.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    except (sql.exc.ArgumentError, ImportError) as error:
        raise SettingsError(
            f"GPT2_DATABASE_URL: is not a URL of SQLite or PostgreSQL ({type(error).__name__})"
        ) from None
    if engine.dialect.name == "sqlite":
        sql.event.listen(engine, "connect", _configure_sqlite)
        _queue_writers(engine)
    try:
        try:
            with engine.begin() as connection:
                _create_tables(connection)
        except OperationalError as error:
            raise SettingsError(f"GPT2_DATABASE_URL: the database cannot be used: {error.orig}") from error
        yield engine
    finally:
        engine.dispose()


@contextmanager
def reading(engine: sql.Engine) -> Iterator[sql.Connection]:
    """A connection that only reads, and so neither waits for a writer of SQLite nor blocks one."""
    with engine.connect().execution_options(**{_READS: True}) as connection:
        yield connection


def lock(connection: sql.Connection, name: str) -> None:
    """Keeps other transactions that lock the same name waiting until this one ends. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        key = sql.func.hashtextextended(name, 0)
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(key)))


def poll_seconds(engine: sql.Engine, shared_seconds: float = 2.0) -> float:
    """How often to poll the database for changes by other processes, in seconds.

    What a process commits itself wakes its own threads. SQLite has one service as its only writer; polling it finds
    what a killed process of that service has left.

    Args:
        engine: The database.
        shared_seconds: How often on PostgreSQL, which replicas share.
    """
    return _SQLITE_POLL_SECONDS if engine.dialect.name == "sqlite" else shared_seconds


def clock(connection: sql.Connection) -> float:
    """The database's own time, in seconds since 1970: the same for all replicas, however their clocks differ."""
    if connection.dialect.name == "postgresql":
        now = sql.text("SELECT extract(epoch FROM clock_timestamp())")
    else:
        now = sql.text("SELECT (julianday('now') - 2440587.5) * 86400.0")
    return float(connection.execute(now).scalar_one())


def insert(connection: sql.Connection, table: sql.Table) -> "postgresql.Insert | sqlite.Insert":
    """An INSERT in the dialect of the connection's database, which can leave out rows that are there already."""
    # Imported where they are used: PostgreSQL's loads what all of its drivers have in common.
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def _create_tables(connection: sql.Connection) -> None:
    # Replicas that start together would each find a table missing, and all but one fail to create it.
    if connection.dialect.name == "postgresql":
        connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
    METADATA.create_all(connection)
    for table in METADATA.sorted_tables:
        present = {column["name"] for column in sql.inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in present:
                kind = column.type.compile(connection.dialect)
                connection.exec_driver_sql(f'ALTER TABLE {table.name} ADD COLUMN "{column.name}" {kind}')
        _create_indexes(connection, table)


def _create_indexes(connection: sql.Connection, table: sql.Table) -> None:
    """Creates the indexes that are missing, and drops those that a version before had."""
    present = {str(index["name"]) for index in sql.inspect(connection).get_indexes(table.name)}
    wanted = {str(index.name): index for index in table.indexes}
    for name in wanted.keys() - present:
        wanted[name].create(connection)
    for name in present - wanted.keys():
        if name.startswith("ix_"):
            connection.exec_driver_sql(f'DROP INDEX "{name}"')


def _queue_writers(engine: sql.Engine) -> None:
    """Lets the threads of this process write to SQLite one after the other.

    A transaction that writes takes SQLite's lock at once, as it cannot wait for it later without a deadlock. SQLite
    waits by polling with ever longer pauses, in which a thread can starve for a second. So threads wait for each other
    here, and SQLite polls only for other processes.
    """
    write_lock = threading.Lock()

    def begin(connection: sql.Connection) -> None:
        if connection.get_execution_options().get(_READS):
            connection.exec_driver_sql("BEGIN")
            return
        # After this timeout follows SQLite's own, and then its error.
        connection.info[_HOLDS_WRITE_LOCK] = write_lock.acquire(timeout=_LOCK_SECONDS)
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def end(_connection: object, record: sql.pool.ConnectionPoolEntry, *_error: object) -> None:
        if record.info.pop(_HOLDS_WRITE_LOCK, False):
            write_lock.release()

    sql.event.listen(engine, "begin", begin)
    # A connection is checked in when its transaction is committed or rolled back.
    sql.event.listen(engine, "checkin", end)
    sql.event.listen(engine, "invalidate", end)


def _configure_sqlite(connection: "sql.engine.interfaces.DBAPIConnection", _record: object) -> None:
    connection.isolation_level = None  # SQLAlchemy's own BEGIN, above, not the driver's
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={_LOCK_SECONDS * 1000}")
    cursor.close()
