import hashlib
import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gpt2_common.artifacts import ArtifactStore
from gpt2_common.artifacts.roots import require_allowed
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound


@pytest.fixture
def store(tmp_path):
    root = (tmp_path / "root").as_uri()
    return ArtifactStore(root, [root], tmp_path / "scratch")


def make(store, job_id="run/export", kind="corpus", text="hello", producer=None, parents=()):
    with store.create(job_id, kind, kind, producer or {"job_id": job_id}, parents) as writer:
        (writer.folder / "part").mkdir(exist_ok=True)
        (writer.folder / "part" / "text.txt").write_text(text)
        (writer.folder / "other.bin").write_bytes(b"\x00\x01")
        return writer.commit({"documents": 1}, {"language": "en"})


def test_what_was_committed_can_be_opened_with_all_that_was_said_of_it(store):
    parent = make(store, "run/a")
    made = make(store, "run/b", kind="dataset", parents=[parent])
    opened = store.open("dataset_uri", made.uri, "dataset", verify=True)
    assert opened.digest == made.digest
    assert opened.manifest.counts == {"documents": 1}
    assert opened.manifest.properties == {"language": "en"}
    assert opened.manifest.parents[0].digest == parent.digest
    assert (opened.folder / "part" / "text.txt").read_text() == "hello"


@pytest.mark.parametrize("name", ["with space", "größe", "a+b", "100%", "%20", "a#b", "a::b", "[x]", "emoji 🙂"])
def test_a_folder_may_have_any_name(tmp_path, name):
    root = (tmp_path / name).as_uri()
    store = ArtifactStore(root, [root], tmp_path / "scratch")
    made = make(store)
    opened = store.open("uri", made.uri, "corpus", verify=True)
    assert opened.digest == made.digest
    # Callers may also say where it is by its path.
    assert store.open("uri", str(made.folder), "corpus").uri == made.uri


def test_the_digest_tells_content_and_nothing_else(store):
    first = make(store, "run/a", producer={"job_id": "a", "time": "1"})
    same = make(store, "run/b", producer={"job_id": "b", "time": "2"})
    other = make(store, "run/c", text="hello!")
    assert first.digest == same.digest
    assert other.digest != first.digest


def test_a_file_hashed_before_the_commit_is_not_read_again_unless_its_size_has_changed(store):
    with store.create("run/a", "corpus", "corpus", {}) as writer:
        for name in ("kept", "grown"):
            (writer.folder / name).write_text("hello")
            writer.hash_file(writer.folder / name)
        (writer.folder / "kept").write_text("jello")  # Nobody may do so; it shows who has read it.
        (writer.folder / "grown").write_text("hello!")
        digests = {entry.path: entry.sha256 for entry in writer.commit().manifest.files}
    assert digests == {
        name: hashlib.sha256(text).hexdigest() for name, text in [("kept", b"hello"), ("grown", b"hello!")]
    }


def test_nothing_can_be_opened_before_the_commit(store):
    with store.create("run/a", "corpus", "corpus", {}) as writer:
        (writer.folder / "text.txt").write_text("half")
        with pytest.raises(NotFound, match=r"corpus_uri: .* has no manifest.json"):
            store.open("corpus_uri", writer.uri, "corpus")


def test_files_of_an_attempt_before_are_found_again(store):
    with store.create("run/a", "corpus", "corpus", {}) as writer:
        (writer.folder / "shard-0").write_text("done")
    with store.create("run/a", "corpus", "corpus", {}) as writer:
        assert (writer.folder / "shard-0").read_text() == "done"


def test_a_commit_replaces_what_an_attempt_before_committed(store):
    make(store, text="old")
    made = make(store, text="new")
    assert (store.open("uri", made.uri, "corpus", verify=True).folder / "part" / "text.txt").read_text() == "new"


def test_an_artifact_of_the_wrong_kind_is_refused_naming_the_field(store):
    made = make(store)
    with pytest.raises(InvalidRequest, match=r"tokenizer_uri: .* is a corpus artifact; a tokenizer artifact is needed"):
        store.open("tokenizer_uri", made.uri, "tokenizer")


@pytest.mark.parametrize("damage", ["truncate", "delete", "flip"])
def test_damaged_files_are_found(store, damage):
    made = make(store)
    path = made.folder / "part" / "text.txt"
    if damage == "truncate":
        path.write_text("hell")
    elif damage == "delete":
        path.unlink()
    else:
        path.write_text("hallo")
    with pytest.raises(DataLoss, match=r"part/text.txt .*make the artifact again"):
        store.open("uri", made.uri, "corpus", verify=True)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_damaged_manifest_is_found(store):
    made = make(store)
    manifest = made.folder / "manifest.json"
    original = manifest.read_text()
    for text in ("", "{", "[]", original[:-20], original.replace("text.txt", "else.txt")):
        manifest.write_text(text)
        with pytest.raises(DataLoss):
            store.open("uri", made.uri, "corpus")


def test_an_artifact_of_an_unknown_version_is_refused(store):
    made = make(store)
    edit(made.folder / "manifest.json", lambda content: content.update(format_version=2))
    with pytest.raises(FailedPrecondition, match=r"version 2.*update the service"):
        store.open("uri", made.uri, "corpus")


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "a/../../b", ""])
def test_a_manifest_cannot_name_files_outside(store, path):
    made = make(store)
    edit(made.folder / "manifest.json", lambda content: content["files"][0].update(path=path))
    with pytest.raises(DataLoss):
        store.open("uri", made.uri, "corpus")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "/etc",
        "file:///etc/passwd",
        "{root}/../outside",
        "{root}/%2e%2e/outside",
        "{root}/link",
        "{root}/a#b",
        "{root}/a?b",
        "file://host{path}",
        "relative/path",
        "s3://bucket/corpus",
        "{root}-beside",
        "{root}/a\0b",
        "{root}/" + "x" * 4096,
    ],
)
def test_uris_outside_the_roots_are_refused(store, tmp_path, uri):
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    uri = uri.replace("{root}", store.root).replace("{path}", str(tmp_path / "root"))
    with pytest.raises(InvalidRequest, match="corpus_uri: "):
        store.open("corpus_uri", uri, "corpus")


def test_paths_are_taken_as_uris(store, tmp_path):
    made = make(store)
    assert store.open("uri", str(made.folder), "corpus").uri == made.uri
    assert store.open("uri", made.uri + "/", "corpus").uri == made.uri


@pytest.mark.parametrize(
    "uri", ["s3://bucket/data/../../other", "s3://bucket/database/x", "s3://else/data/x", "s3://bucket/data/%2e%2e/x"]
)
def test_remote_uris_stay_under_their_root(uri):
    assert require_allowed("uri", "s3://bucket/data/x", ["s3://bucket/data"]) == "s3://bucket/data/x"
    with pytest.raises(InvalidRequest):
        require_allowed("uri", uri, ["s3://bucket/data"])


def test_an_object_store_holds_artifacts_as_a_disk_does(tmp_path):
    store = ArtifactStore("memory://bucket/data", ["memory://bucket/data"], tmp_path / "scratch")
    made = make(store)
    assert made.uri == "memory://bucket/data/run~export/corpus"
    # Another service, with another scratch folder.
    reader = ArtifactStore("memory://bucket/data", ["memory://bucket/data"], tmp_path / "other")
    opened = reader.open("uri", made.uri, "corpus", verify=True)
    assert opened.digest == made.digest
    assert (opened.folder / "part" / "text.txt").read_text() == "hello"


@pytest.mark.parametrize("before", ["nothing", "remains"])
def test_a_copy_that_another_process_has_finished_meanwhile_stays_in_its_place(tmp_path, monkeypatch, before):
    root = f"memory://bucket/{before}"
    store = ArtifactStore(root, [root], tmp_path / "scratch")
    made = make(store)
    copies = tmp_path / "reader"
    reader, other = (ArtifactStore(root, [root], copies) for _ in range(2))
    if before == "remains":
        # Somebody has begun to delete an earlier copy.
        shutil.rmtree(reader.open("uri", made.uri, "corpus").folder / "part")
        (reader.work.downloads / made.digest / "manifest.json").unlink()
    download = MemoryFileSystem.get_file
    opened = []

    def while_another_process_does_the_same(self, remote, local, **options):
        if not opened:
            opened.append(None)
            opened[0] = other.open("uri", made.uri, "corpus").folder
            opened.append(opened[0].stat().st_ino)
        download(self, remote, local, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", while_another_process_does_the_same)
    folder = reader.open("uri", made.uri, "corpus", verify=True).folder
    assert folder == opened[0]
    assert folder.stat().st_ino == opened[1]
    assert [path.name for path in reader.work.downloads.iterdir()] == [made.digest]


def open_and_read(root, uri, scratch, barrier, results):
    """Opens an artifact at the same time as other processes, and reads it for a while."""
    store = ArtifactStore(root, [root], scratch)
    barrier.wait()
    try:
        folder = store.open("uri", uri, "corpus").folder
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            assert (folder / "part" / "text.txt").read_text() == "hello"
        results.put("")
    except Exception as error:  # noqa: BLE001 - the parent fails with it
        results.put(repr(error))


@pytest.mark.process
def test_processes_that_download_an_artifact_at_once_read_it_undisturbed(tmp_path):
    made = make(ArtifactStore(f"file://{tmp_path}/root", [f"file://{tmp_path}/root"], tmp_path / "writer"))
    # A root that processes share without a server, and whose artifacts are copied as those of an object store.
    root = f"local://{tmp_path}/root"
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (root, made.uri.replace("file://", "local://"), tmp_path / "reader", barrier, results)
    processes = [context.Process(target=open_and_read, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [""] * 4
    for process in processes:
        process.join()
