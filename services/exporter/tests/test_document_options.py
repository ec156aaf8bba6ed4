"""Options for documents: normalisation, lengths, duplicates; and the summary of what was read."""

import json

import duckdb
import pytest

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition
from gpt2_exporter.corpus.duplicates import SeenTexts


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


@pytest.fixture
def run(texts, make_context, export):
    """Imports some texts, as lines of a file."""

    def run(*lines, options=None, job_id="job", settings=None, **fields):
        (texts / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        request = pb.ImportFilesRequest(uris=[texts.as_uri()], documents=pb.DocumentOptions(**options or {}), **fields)
        return export(request, make_context(job_id, **(settings or {})))

    return run


def test_texts_are_composed_where_asked(run):
    decomposed = "Gru\u0308ße \u1112\u1161\u11ab"
    assert run(decomposed).texts == [decomposed]
    assert run(decomposed, options={"normalization": pb.NORMALIZATION_NFC}, job_id="b").texts == ["Grüße 한"]


def test_lengths_count_characters_and_what_is_left_out_does_not_count_as_unusable(run):
    corpus = run("ä" * 2, "ä" * 3, "\U0001f600" * 5, "x" * 6, options={"min_characters": 3, "max_characters": 5})
    assert corpus.texts == ["äää", "\U0001f600" * 5]
    assert corpus.summary["filtered_by_reason"] == {"too long": 1, "too short": 1}
    assert (corpus.counts["rejected"], corpus.counts["filtered"]) == (0, 2)
    assert [reject["reason"] for reject in corpus.rejects] == ["too short", "too long"]


def test_the_length_is_that_after_normalisation(run):
    options = {"normalization": pb.NORMALIZATION_NFC, "max_characters": 1}
    assert run("e\u0301", "ab", options=options).texts == ["é"]


def test_the_first_of_equal_texts_stays(run):
    lines = ["a", "b", "a", "e\u0301", "c", "é", "b", "a"]
    options = {"drop_duplicates": True, "normalization": pb.NORMALIZATION_NFC}
    for number, shard_bytes in enumerate((1, 1 << 20)):
        corpus = run(*lines, options=options, job_id=str(number), settings={"corpus_shard_bytes": shard_bytes})
        assert corpus.texts == ["a", "b", "é", "c"]
        assert corpus.summary["filtered_by_reason"] == {"duplicate": 4}


def test_texts_seen_after_the_last_resume_point_are_forgotten(tmp_path):
    import pyarrow as pa

    with SeenTexts(tmp_path, 0) as seen:
        assert seen.add(pa.array(["a", "b", "a"])) == [2]
        seen.save()
        assert seen.add(pa.array(["c"])) == []
    with SeenTexts(tmp_path, 1) as seen:
        assert seen.add(pa.array(["a", "b", "c"])) == [0]


def test_options_that_leave_no_document_are_an_error(run):
    with pytest.raises(FailedPrecondition, match="not one document is usable: 1 too short"):
        run("a", options={"min_characters": 9})


def test_rejects_can_be_limited_as_a_fraction(run):
    lines = ["good"] * 8 + [None, 5]
    assert run(*lines, max_rejected_fraction=0.2).counts["rejected"] == 2
    with pytest.raises(FailedPrecondition, match=r"2 of the first 10 documents.*max_rejected_fraction allows 0.19"):
        run(*lines, max_rejected_fraction=0.19, job_id="b")
    with pytest.raises(FailedPrecondition, match="max_rejected allows 1"):
        run(*lines, max_rejected_fraction=0.5, max_rejected=1, job_id="c")


def test_the_summary_has_lengths_and_scripts(run):
    corpus = run("a", "Grüße", "Привет мир", "日本", "ひ", "7 %", "\u0905")
    assert corpus.summary["documents_by_characters"] == {"1-1": 3, "2-3": 2, "4-7": 1, "8-15": 1}
    assert corpus.summary["letters_by_script"] == {
        **{"Cyrillic": 9, "Latin": 6, "Han": 2, "Hiragana": 1, "Devanagari": 1}
    }
    assert corpus.summary["characters"] == sum(map(len, ["a", "Grüße", "Привет мир", "日本", "ひ", "7 %", "\u0905"]))


def test_duckdb_reads_a_corpus(run):
    corpus = run("a\0b", "ü", "c", settings={"corpus_shard_bytes": 1})
    query = "SELECT id, text, length(text) FROM read_parquet(?) ORDER BY id"
    rows = duckdb.execute(query, [f"{corpus.folder}/*.parquet"]).fetchall()
    assert rows == [("a.jsonl:1", "a\0b", 3), ("a.jsonl:2", "ü", 1), ("a.jsonl:3", "c", 1)]
