"""The short way out of a raw batch gives what the full decoding gives, or leaves the batch to it."""

import bson
import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from gpt2_exporter.mongo.decoding import decode_batch, last_document
from gpt2_exporter.mongo.plain_documents import read_plain

IDS = st.binary(min_size=12, max_size=12).map(ObjectId)
VALUES = st.one_of(st.text(), st.text(min_size=1), st.none(), st.integers(-5, 5), st.lists(st.text(), max_size=2))
DOCUMENTS = st.one_of(
    st.fixed_dictionaries({"_id": IDS, "text": st.text(min_size=1)}),
    st.fixed_dictionaries(
        {"_id": st.one_of(IDS, st.text(), st.integers(-5, 5)), "text": VALUES}, optional={"n": VALUES}
    ),
)


def pack(*documents: dict) -> bytes:
    return b"".join(map(bson.encode, documents))


@given(st.lists(st.fixed_dictionaries({"_id": IDS, "text": st.text(min_size=1)}), min_size=1))
def test_plain_documents_are_read_as_the_decoder_reads_them(documents):
    ids, names, texts = read_plain(pack(*documents), "text")
    assert list(ids) == [document["_id"] for document in documents]
    assert names.to_pylist() == [str(document["_id"]) for document in documents]
    assert texts.to_pylist() == [document["text"] for document in documents]


@given(st.lists(DOCUMENTS, min_size=1))
def test_other_documents_are_left_alone_or_read_alike(documents):
    batch = pack(*documents)
    decoded = [document for document, _ in decode_batch(batch)]
    assert last_document(batch) == decoded[-1]
    found = read_plain(batch, "text")
    plain = all(
        set(document) == {"_id", "text"}
        and isinstance(document["_id"], ObjectId)
        and isinstance(document["text"], str)
        and document["text"]
        for document in documents
    )
    assert (found is not None) == plain
    if found is not None:
        assert found[2].to_pylist() == [document["text"] for document in decoded]


SOUND = pack({"_id": ObjectId(b"a" * 12), "text": "ab\0cü"})


@pytest.mark.parametrize(
    "batch",
    [
        SOUND[:-1],
        SOUND + b"\0",
        SOUND[:-1] + b"\1",
        SOUND[:-2] + b"\1\0",
        SOUND.replace(b"\xc3\xbc", b"\xc3\xc3"),
        SOUND.replace(b"\xc3\xbc", b"\x80b"),
        SOUND.replace(b"text\0", b"texts"),
        pack({"text": "x", "other": ObjectId(b"a" * 12)}),
        pack({"_id": b"a" * 12, "text": "x"}),
        pack({"_id": ObjectId(b"a" * 12), "text": bson.Code("x")}),
        (1 << 30).to_bytes(4, "little") + SOUND[4:],
        b"\0" * 64,
        b"\xff" * 64,
    ],
)
def test_what_is_not_plain_is_left_alone(batch):
    assert read_plain(batch, "text") is None


def test_surrogates_in_utf8_are_left_to_the_decoder():
    assert read_plain(SOUND.replace(b"ab\0", b"\xed\xa0\x80"), "text") is None
