"""How the threads of a service share one SQLite file: readers wait for nobody, and writers queue up."""

import threading

import pytest
import sqlalchemy as sql

from gpt2_common.database import open_database, reading

COUNT = sql.text("SELECT count(*) FROM notes")
ADD = sql.text("INSERT INTO notes VALUES (:id)")


@pytest.fixture
def engine(tmp_path):
    with open_database(f"sqlite:///{tmp_path / 'jobs.db'}") as opened:
        with opened.begin() as connection:
            connection.execute(sql.text("CREATE TABLE notes (id TEXT)"))
        yield opened


def test_a_reader_sees_what_is_committed_while_another_writes(engine):
    with engine.begin() as writer:
        writer.execute(ADD, {"id": "1"})
        with reading(engine) as reader:
            assert reader.execute(COUNT).scalar_one() == 0
    with reading(engine) as reader:
        assert reader.execute(COUNT).scalar_one() == 1


def test_writers_take_turns_also_after_one_has_failed(engine):
    with pytest.raises(sql.exc.OperationalError), engine.begin() as writer:
        writer.execute(sql.text("INSERT INTO nowhere VALUES (1)"))
    written = []

    def write(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(ADD, {"id": str(number)})
        written.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    with engine.begin():
        for thread in threads:
            thread.start()
        assert not written
    for thread in threads:
        thread.join()
    assert sorted(written) == list(range(20))
    with reading(engine) as reader:
        assert reader.execute(COUNT).scalar_one() == 20
