"""Downloads of OpenAI's models, against servers that misbehave."""

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpt2_common.errors import DataLoss, FailedPrecondition, JobCancelled, NotFound, Unavailable
from gpt2_contracts.openai import FILES
from gpt2_trainer.formats.openai_download import ModelDownload
from gpt2_trainer.settings import TrainerSettings

FILE = "model.ckpt.data-00000-of-00001"
CONTENT = bytes(range(256)) * 4000


class Mirror:
    """A server with a model's files. `behaviours` says what requests for the large file meet; then all goes well."""

    def __init__(self):
        self.behaviours, self.requests = [], []
        self.files = {name: name.encode() * 3 for name in FILES} | {FILE: CONTENT}
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
                mirror.requests.append((self.path, first))
                behaviour = mirror.behaviours.pop(0) if name == FILE and mirror.behaviours else "well"
                getattr(mirror, behaviour)(self, mirror.files[name], first)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/models"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler, content, first=0, status=None, sent=None, **headers):
        handler.send_response(status or (206 if first else 200))
        handler.send_header("Content-Type", headers.pop("kind", "application/octet-stream"))
        handler.send_header("Content-Length", str(len(content) - first))
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        handler.send_header("ETag", '"1"')
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content[first:sent])
        handler.close_connection = True

    def well(self, handler, content, first):
        if first >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        self.answer(handler, content, first, **({} if first else {"Content_MD5": md5}))

    def cut_early(self, handler, content, first):
        self.answer(handler, content, first, sent=len(content) // 10)

    def cut_late(self, handler, content, first):
        self.answer(handler, content, first, sent=len(content) - 1)

    def broken(self, handler, content, first):
        self.answer(handler, b"try later", status=500)

    def missing(self, handler, content, first):
        self.answer(handler, b"<Error>NoSuchBucket</Error>", status=404)

    def forbidden(self, handler, content, first):
        self.answer(handler, b"no", status=403)

    def page(self, handler, content, first):
        self.answer(handler, b"<Error>NoSuchBucket</Error>", kind="application/xml")

    def ignore_range(self, handler, content, first):
        self.answer(handler, content, 0)

    def wrong_offset(self, handler, content, first):
        self.answer(handler, content, first + 100)

    def wrong_md5(self, handler, content, first):
        self.answer(handler, content, first, Content_MD5=base64.b64encode(b"0" * 16).decode())

    def stall(self, handler, content, first):
        self.answer(handler, content, first, sent=1000)
        handler.close_connection = False
        stalled.wait(5)


stalled = threading.Event()


@pytest.fixture
def mirror():
    mirror = Mirror()
    yield mirror
    stalled.set()
    mirror.server.shutdown()
    mirror.server.server_close()
    stalled.clear()


def download(mirror, folder, **changes):
    values = {
        "base_url": mirror.address,
        "model": "124M",
        "cache": folder,
        "timeout_seconds": 0.5,
        "on_progress": lambda *_: None,
        "known_sha256": {},
        "known_sizes": {},
        "first_wait_seconds": 0.01,
    }
    return ModelDownload(**values | changes)


def offsets(mirror):
    return [first for path, first in mirror.requests if path.endswith(FILE)]


def assert_whole(folder):
    assert (folder / FILE).read_bytes() == CONTENT
    assert not [path.name for path in folder.iterdir() if ".part" in path.name]


def test_all_files_arrive_with_progress(mirror, tmp_path):
    reports = []
    folder = download(mirror, tmp_path, on_progress=lambda *report: reports.append(report)).run()
    assert folder == tmp_path / "124M"
    assert {path.name for path in folder.iterdir()} == {*FILES, "sha256.json", ".lock"}
    assert_whole(folder)
    assert (len(CONTENT), len(CONTENT)) in reports
    assert {path for path, _ in mirror.requests} == {f"/models/124M/{name}" for name in FILES}


def test_the_cache_is_used_and_checked(mirror, tmp_path):
    folder = download(mirror, tmp_path).run()
    mirror.requests.clear()
    download(mirror, tmp_path).run()
    assert mirror.requests == []
    (folder / FILE).write_bytes(CONTENT[:-1] + b"x")
    download(mirror, tmp_path).run()
    assert [path for path, _ in mirror.requests] == [f"/models/124M/{FILE}"]
    assert_whole(folder)


@pytest.mark.parametrize(
    ("behaviours", "expected"),
    [
        (["cut_early"], [0, 102400]),
        (["cut_late"], [0, 1023999]),
        (["cut_early", "cut_late"], [0, 102400, 1023999]),
        (["cut_early", "ignore_range"], [0, 102400]),
        (["cut_early", "wrong_offset"], [0, 102400, 102400]),
        (["cut_early", "broken", "broken", "broken"], [0, 102400, 102400, 102400, 102400]),
        (["broken", "broken", "broken"], [0, 0, 0, 0]),
        (["stall"], [0, 1000]),
    ],
)
def test_broken_transfers_go_on_where_they_broke(mirror, tmp_path, behaviours, expected):
    mirror.behaviours = list(behaviours)
    assert_whole(download(mirror, tmp_path).run())
    assert offsets(mirror) == expected


def test_a_transfer_broken_by_a_crash_resumes(mirror, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{FILE}.part").write_bytes(CONTENT[:777])
    assert_whole(download(mirror, tmp_path).run())
    assert offsets(mirror) == [777]


def test_a_crash_after_the_last_byte_costs_nothing(mirror, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{FILE}.part").write_bytes(CONTENT)
    assert_whole(download(mirror, tmp_path).run())
    assert offsets(mirror) == [len(CONTENT)]


def test_a_part_that_is_longer_than_the_file_is_dropped(mirror, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{FILE}.part").write_bytes(CONTENT + b"more")
    assert_whole(download(mirror, tmp_path).run())
    assert offsets(mirror) == [len(CONTENT) + 4, 0]


@pytest.mark.parametrize(
    ("behaviours", "error", "part"),
    [
        (["missing"], NotFound, "does not exist"),
        (["forbidden"], FailedPrecondition, "HTTP 403"),
        (["page"], Unavailable, "a page .application/xml. instead of the file"),
        (["broken"] * 5, Unavailable, "HTTP 500"),
        (["wrong_md5"], DataLoss, "has not the MD5"),
    ],
)
def test_what_does_not_arrive_is_said_and_nothing_is_left_that_could_be_used(mirror, tmp_path, behaviours, error, part):
    mirror.behaviours = list(behaviours)
    with pytest.raises(error, match=part) as caught:
        download(mirror, tmp_path).run()
    assert "GPT2_OPENAI_BASE_URL" in str(caught.value)
    assert f"{mirror.address}/124M/{FILE}" in str(caught.value)
    assert not (tmp_path / "124M" / FILE).exists()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"known_sha256": {FILE: "0" * 64}}, "has the SHA-256 .* instead of 0000"),
        ({"known_sha256": {f"124M/{FILE}": "0" * 64}}, "has the SHA-256"),
        ({"known_sizes": {f"124M/{FILE}": 7}}, "has 1,024,000 bytes instead of 7"),
    ],
)
def test_files_that_are_known_are_checked(mirror, tmp_path, changes, part):
    with pytest.raises(DataLoss, match=part):
        download(mirror, tmp_path, **changes).run()
    assert [path.name for path in (tmp_path / "124M").iterdir() if path.name.startswith(FILE)] == [f"{FILE}.part.etag"]


def test_nobody_there(tmp_path, mirror):
    mirror.server.shutdown()
    mirror.server.server_close()
    with pytest.raises(Unavailable, match="cannot be downloaded"):
        download(mirror, tmp_path).run()


def test_a_cancelled_download_stops_and_resumes_later(mirror, tmp_path):
    def cancel(done, total):
        if done > 300_000:
            raise JobCancelled("the job was cancelled")

    with pytest.raises(JobCancelled):
        download(mirror, tmp_path, on_progress=cancel).run()
    assert not (tmp_path / "124M" / FILE).exists()
    assert_whole(download(mirror, tmp_path).run())
    assert offsets(mirror)[1] > 300_000


def test_the_checksums_of_124m_are_pinned_by_default(mirror, tmp_path):
    with pytest.raises(DataLoss, match="SHA-256"):
        ModelDownload(
            base_url=mirror.address, model="124M", cache=tmp_path, timeout_seconds=5, on_progress=lambda *_: None
        ).run()


def test_folders_of_downloads_are_absolute_wherever_the_service_was_started(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = TrainerSettings(openai_cache="models", hub_cache="hub")
    assert (settings.openai_cache, settings.hub_cache) == (tmp_path / "models", tmp_path / "hub")
