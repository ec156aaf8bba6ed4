"""The stages between a source and its shards, which work on batches in memory."""

import random

import pytest

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus.duplicates import SeenTexts, drop_duplicates
from gpt2_exporter.corpus.preparation import prepare
from gpt2_exporter.corpus.shards import cut_into_shards
from gpt2_exporter.corpus.source import Batch
from gpt2_exporter.corpus.statistics import CorpusStatistics

OPTIONS = pb.DocumentOptions(min_characters=3, normalization=pb.NORMALIZATION_NFC)


@pytest.fixture(scope="module")
def documents():
    """Texts of 1 to 40 characters; None is an unusable document."""
    chooser = random.Random(3)
    texts = ["".join(chooser.choices("abcäöü", k=chooser.randint(1, 40))) for _ in range(500)]
    return [None if number % 9 == 4 else text for number, text in enumerate(texts)]


def batches(documents, size):
    for begin in range(0, len(documents), size):
        texts = documents[begin : begin + size]
        rejects = {position: "text null" for position, text in enumerate(texts) if text is None}
        ids = [str(begin + position) for position in range(len(texts))]
        tokens = range(begin, begin + len(texts))
        yield Batch(ids, "memory:", [text or "" for text in texts], rejects, lambda n, t=tokens: str(t[n]), 0)


def shards(documents, size, work):
    """Ids and the token of each shard, and the statistics, of documents in batches of a size."""
    statistics, found, ids = CorpusStatistics(), [], []
    with SeenTexts(work, 0) as seen:
        prepared = drop_duplicates(prepare(batches(documents, size), OPTIONS), seen)
        for part in cut_into_shards(prepared, 200):
            statistics.add(part.documents)
            ids += part.documents.ids.to_pylist()
            if part.ends_shard:
                found.append((ids, part.documents.resume_token, statistics.to_json()))
                ids = []
    return [*found, (ids, str(len(documents) - 1), statistics.to_json())]


@pytest.mark.parametrize("size", [1, 7, 500])
def test_shards_statistics_and_tokens_do_not_depend_on_batches(documents, size, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    expected = shards(documents, 50, tmp_path / "one")
    assert shards(documents, size, tmp_path / "other") == expected
    assert len(expected) > 10


def test_the_document_that_fills_a_shard_is_its_last_one(documents, tmp_path):
    sizes = {str(number): len((text or "").encode()) for number, text in enumerate(documents)}
    for ids, token, _ in shards(documents, 50, tmp_path)[:-1]:
        assert sum(sizes[name] for name in ids) >= 200 > sum(sizes[name] for name in ids[:-1])
        assert token == ids[-1]


def test_every_document_is_written_or_counted_as_left_out(documents, tmp_path):
    found = shards(documents, 50, tmp_path)
    statistics = CorpusStatistics.from_json(found[-1][2])
    assert statistics.read == len(documents)
    assert statistics.documents == sum(len(ids) for ids, _, _ in found)
    assert statistics.rejects == {"text null": documents.count(None)}
    assert set(statistics.filtered) == {"too short"}
