"""The formats of files, plain and compressed, sound and hostile."""

import bz2
import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": lambda raw: pa.Codec("zstd").compress(raw, asbytes=True)}
TEXTS = ["one, two", 'say "hi"\nthere', "Grüße\r\nü", "x" * 5000, " "]


def as_csv(texts):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("n", "text"), *enumerate(texts)])
    return out.getvalue().encode()


def as_parquet(texts):
    out = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), out, row_group_size=70)
    return out.getvalue()


FORMATS = {
    ".csv": as_csv,
    ".json": lambda texts: json.dumps([{"text": text} for text in texts]).encode(),
    ".jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts).encode(),
    ".parquet": as_parquet,
}


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


@pytest.fixture
def run(texts, make_context, export):
    def run(job_id="job", settings=None, **fields):
        request = pb.ImportFilesRequest(uris=[texts.as_uri()], **fields)
        return export(request, make_context(job_id, **(settings or {})))

    return run


@pytest.mark.parametrize("end", COMPRESS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_each_format_gives_its_texts_plain_and_compressed(texts, run, suffix, end):
    (texts / f"a{suffix}{end}").write_bytes(COMPRESS[end](FORMATS[suffix](TEXTS)))
    corpus = run()
    assert corpus.texts == TEXTS
    assert [row["id"] for row in corpus.rows] == [f"a{suffix}{end}:{n}" for n in range(1, 6)]


@pytest.mark.parametrize("end", COMPRESS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_reading_resumes_inside_a_file(texts, run, make_context, suffix, end):
    lines = [f"{n} " * 30 + "\nü" for n in range(300)]
    (texts / f"a{suffix}{end}").write_bytes(COMPRESS[end](FORMATS[suffix]([*lines, ""])))
    small = {"corpus_shard_bytes": 3000}
    with pytest.raises(FailedPrecondition, match="1 text empty"):
        run(settings=small)
    assert json.loads((make_context().work / "export.json").read_text())["shards"] > 3
    resumed = run(settings=small, max_rejected=1)
    assert resumed.texts == lines
    assert resumed.digest == run("whole", settings=small, max_rejected=1).digest


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (pb.TEXT_UNIT_UNSPECIFIED, [("a.txt", "one\r\ntwo\n\n \nthree\n")]),
        (pb.TEXT_UNIT_LINE, [("a.txt:1", "one"), ("a.txt:2", "two"), ("a.txt:5", "three")]),
        (pb.TEXT_UNIT_PARAGRAPH, [("a.txt:1", "one\r\ntwo"), ("a.txt:5", "three")]),
    ],
)
def test_what_a_document_of_plain_text_is(texts, run, unit, expected):
    (texts / "a.txt").write_bytes(b"one\r\ntwo\n\n \nthree\n")
    assert [(row["id"], row["text"]) for row in run(text_unit=unit).rows] == expected


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (pb.ENCODING_ERRORS_STRICT, ["good"]),
        (pb.ENCODING_ERRORS_REPLACE, ["b\ufffdd", "good"]),
        (pb.ENCODING_ERRORS_SKIP, ["bd", "good"]),
    ],
)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"b\xffd\ngood\n"),
        ("a.csv", b"text\nb\xffd\ngood\n"),
        ("a.json", b'[{"text": "b\xffd"}, {"text": "good"}]'),
        ("a.jsonl", b'{"text": "b\xffd"}\n{"text": "good"}\n'),
    ],
)
def test_bytes_that_do_not_fit_are_handled_as_asked(texts, run, name, content, errors, expected):
    (texts / name).write_bytes(content)
    corpus = run(encoding_errors=errors, text_unit=pb.TEXT_UNIT_LINE, max_rejected=1)
    assert corpus.texts == expected
    assert corpus.summary["rejected_by_reason"] == ({"broken UTF-8": 1} if len(expected) == 1 else {})


def test_json_and_csv_can_be_in_another_encoding(texts, run):
    (texts / "a.json").write_bytes('[{"text": "Grüße"}]'.encode("utf-16"))
    assert run(encoding="utf-16").texts == ["Grüße"]
    (texts / "a.json").unlink()
    (texts / "a.csv").write_bytes("text\nGrüße".encode("latin-1"))
    assert run("b", encoding="latin-1").texts == ["Grüße"]


@pytest.mark.parametrize(
    ("content", "texts_found", "reasons"),
    [
        (b'\xef\xbb\xbf {"text": "one"}', ["one"], {}),
        (b'[{"text": "a"}, 5, {"text": null}, {"no": 1}, {"text": "b"}]', ["a", "b"], 3),
        (b'{"text": "a"}\n{"text": "b"}\n [{"text": "c"}] []', ["a", "b", "c"], {}),
        (b'["a", {"text": "b"}]', ["b"], {"not a JSON object": 1}),
        (b'[{"text": "a", "text": "b"}]', ["b"], {}),
        (
            b'[{"text": "a", "n": ' + b"9" * 5000 + b'}, {"n": [1e999, NaN, 123456789012345678901], "text": "b"}]',
            ["a", "b"],
            {},
        ),
        (b'[{"text": "\\ud800"}, {"text": "\\ud83d\\ude00"}]', ["\U0001f600"], {"broken UTF-8": 1}),
        ('[{"text": "\ufdd0\ufdef\ufdd0"}]'.encode(), ["\ufdd0\ufdef\ufdd0"], {}),
        (b'[{"text": "a"},]', ["a"], {"not a JSON object": 1}),
        (b" \n", [], {"not a JSON object": 1}),
        (b'[{"text": "a"}, {"text": "b"', ["a"], {"not a JSON object": 1}),
        (b'[{"text": "a"}] trailing', ["a"], {"not a JSON object": 1}),
        (b'[{"text": "a"}, ' + b"[" * 100_000, ["a"], {"not a JSON object": 1}),
    ],
)
def test_json_that_is_odd_or_broken(texts, run, content, texts_found, reasons):
    (texts / "a.json").write_bytes(content)
    (texts / "b.txt").write_text("last")
    corpus = run(max_rejected=-1)
    assert corpus.texts == [*texts_found, "last"]
    found = corpus.summary["rejected_by_reason"]
    assert (sum(found.values()) if isinstance(reasons, int) else found) == reasons


@pytest.mark.parametrize("block", [1, 7])
def test_where_the_blocks_of_a_json_file_end_changes_nothing(texts, run, monkeypatch, block):
    monkeypatch.setattr("gpt2_exporter.files.json_documents._BLOCK", block)
    odd = r'[ {"text": "ü\"\\\ud83d\ude00", "n": [-1.5e+10, true, null, -Infinity]} , 12.5, {"text": "b"} ]'
    odd += ' {"text": "c"} 7'
    (texts / "a.json").write_text(odd)
    corpus = run(max_rejected=2)
    assert corpus.texts == ['ü"\\\U0001f600', "b", "c"]
    assert corpus.rejects[0]["id"] == "a.json:2"
    assert corpus.rejects[1]["id"] == "a.json:5"


@pytest.mark.parametrize(
    ("content", "found", "broken"),
    [
        (b'\n\ntext,n\r\n"a\r\nb",1\r\nc\0d,2\n', ["a\r\nb", "c\0d"], 0),
        (b'text,n\n"a"x,1\nb "c",2\n', ['b "c"'], 1),
        (b"text,n\na, b,1\nc,2,\nd\n", ["c", "d"], 1),
        (b'text,n\na,1\n"b\nc,2\n', ["a"], 1),
        (b"text,n\na\rb,1\nc,2\n", ["c"], 1),
    ],
)
def test_csv_that_is_odd_or_broken(texts, run, content, found, broken):
    (texts / "a.csv").write_bytes(content)
    corpus = run(max_rejected=-1)
    assert corpus.texts == found
    assert corpus.summary["rejected_by_reason"] == ({"broken CSV row": broken} if broken else {})


def test_csv_with_a_missing_or_ambiguous_header_is_an_error(texts, run):
    (texts / "a.csv").write_bytes(b"text,n\ra,1\r")
    with pytest.raises(FailedPrecondition, match=r"does not begin with a row of column names.*LF or CRLF"):
        run()
    (texts / "a.csv").write_bytes(b"text,text\na,b\n")
    with pytest.raises(FailedPrecondition, match="has 2 columns text: rename"):
        run("b")


@pytest.mark.parametrize("unit", [pb.TEXT_UNIT_FILE, pb.TEXT_UNIT_LINE, pb.TEXT_UNIT_PARAGRAPH])
def test_a_byte_order_mark_of_the_encoding_is_removed(texts, run, unit):
    bom = b"\xef\xbb\xbf"
    (texts / "a.txt").write_bytes(bom + b"one\n\n" + bom + b"two")
    (texts / "b.csv").write_bytes(bom + b"text\nthree\n")
    (texts / "c.jsonl").write_bytes(bom + b'{"text": "four"}\n')
    (texts / "d.json").write_bytes(bom + b'{"text": "five"}\n')
    plain = ["one\n\n\ufefftwo"] if unit == pb.TEXT_UNIT_FILE else ["one", "\ufefftwo"]
    assert run(text_unit=unit, encoding="utf-8-sig").texts == [*plain, "three", "four", "five"]


def test_rows_of_csv_that_are_short_or_empty(texts, run):
    (texts / "a.csv").write_bytes(b'\xef\xbb\xbf"n","text"\r\n1,a\r\n\r\n2\r\n3,\r\n4,"b ""c"""\r\n')
    corpus = run(max_rejected=2)
    assert corpus.texts == ["a", 'b "c"']
    assert corpus.summary["rejected_by_reason"] == {"text missing": 1, "text empty": 1}


def test_a_table_without_the_column_is_an_error_that_lists_its_columns(texts, run):
    (texts / "a.csv").write_bytes(b"title,body\na,b\n")
    with pytest.raises(FailedPrecondition, match=r"no column text; its first row names title, body: set text_field"):
        run()
    assert run("b", text_field="body").texts == ["b"]


def test_parquet_is_read_by_column(texts, run):
    strings = ["a", None, "", "ü" * 10]
    table = pa.table({"text": strings, "n": [1, 2, 3, 4], "other": pa.array(["x"] * 4).dictionary_encode()})
    pq.write_table(table, texts / "a.parquet", row_group_size=2)
    corpus = run(max_rejected=2)
    assert [(row["id"], row["text"]) for row in corpus.rows] == [("a.parquet:1", "a"), ("a.parquet:4", "ü" * 10)]
    assert run("b", text_field="other").texts == ["x"] * 4
    with pytest.raises(FailedPrecondition, match="the column n has int64, not strings"):
        run("c", text_field="n")
    with pytest.raises(FailedPrecondition, match="has no column m; it has text, n, other"):
        run("d", text_field="m")


def test_parquet_without_a_value_or_with_a_name_twice(texts, run):
    pq.write_table(pa.table({"text": pa.nulls(3)}), texts / "a.parquet")
    pq.write_table(pa.table({"text": pa.array(["b"], pa.large_string())}), texts / "b.parquet")
    corpus = run(max_rejected=-1)
    assert (corpus.texts, corpus.summary["rejected_by_reason"]) == (["b"], {"text null": 3})
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), texts / "a.parquet")
    with pytest.raises(FailedPrecondition, match="has 2 columns text: rename"):
        run("b")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.txt.gz", gzip.compress(b"text" * 1000)[:-20], id="gzip cut short"),
        pytest.param("a.txt.gz", b"no gzip", id="no gzip"),
        pytest.param("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:30], id="gzip cut early"),
        pytest.param("a.txt.gz", gzip.compress(b"text") + b"rest", id="gzip with more after it"),
        pytest.param("a.jsonl.gz", b"", id="empty gzip"),
        pytest.param("a.txt.zst", b"no zstandard", id="no zstandard"),
        pytest.param("a.txt.zst", b"", id="empty zstandard"),
        pytest.param("a.txt.zst", COMPRESS[".zst"](b"text" * 1000)[:-1], id="zstandard cut short"),
        pytest.param(
            "a.jsonl.zst",
            COMPRESS[".zst"](b'{"text": "a"}\n') + COMPRESS[".zst"](b'{"text": "b"}\n' * 99)[:9],
            id="second frame cut short",
        ),
        pytest.param("a.jsonl.zst", COMPRESS[".zst"](b'{"text": "a"}\n') + b"rest", id="zstandard with more after it"),
        pytest.param("a.parquet", b"no parquet", id="no parquet"),
        pytest.param("a.parquet.gz", gzip.compress(b"no parquet"), id="gzip of no parquet"),
    ],
)
def test_a_damaged_file_is_named(texts, run, name, content):
    (texts / name).write_bytes(content)
    with pytest.raises(DataLoss, match=rf"{name}.*replace it"):
        run()


@pytest.mark.parametrize("end", COMPRESS)
def test_a_parquet_file_that_is_cut_short_is_named(texts, run, end):
    (texts / f"a.parquet{end}").write_bytes(COMPRESS[end](as_parquet(TEXTS))[:-9])
    with pytest.raises(DataLoss, match=rf"a\.parquet{end}.*replace it"):
        run()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
@pytest.mark.parametrize("end", [".gz", ".zst"])
def test_a_small_file_that_becomes_a_huge_document_is_counted_as_too_large(texts, run, monkeypatch, name, end):
    monkeypatch.setattr("gpt2_exporter.rejects.reasons.MAX_DOCUMENT_BYTES", 100_000)
    filler = b"x" * 3_000_000
    content = {
        "a.txt": filler,
        "a.jsonl": b'{"text": "' + filler + b'"}\n',
        "a.json": b'[{"text": "' + filler + b'"}]',
        "a.csv": b'text\n"' + filler + b'"\n',
    }[name]
    (texts / f"{name}{end}").write_bytes(COMPRESS[end](content))
    (texts / "good.txt").write_text("good")
    corpus = run(max_rejected=-1)
    assert corpus.texts == ["good"]
    assert "too large" in corpus.summary["rejected_by_reason"]


def test_links_to_folders_are_not_followed_so_that_none_leads_around(texts, run):
    (texts / "in").mkdir()
    (texts / "in" / "a.txt").write_text("a")
    (texts / "in" / "loop").symlink_to(texts)
    assert run().texts == ["a"]


def test_other_endings_are_left_alone(texts, run):
    (texts / "a.txt").write_text("a")
    (texts / "b.txt.bz2").write_bytes(bz2.compress(b"b"))
    (texts / "c.parquet.xz").write_bytes(b"c")
    assert run().texts == ["a"]
