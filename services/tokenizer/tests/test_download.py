"""Downloads of tokenizers: from a real server on this machine that does what bad servers do."""

import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, JobCancelled, NotFound, Unavailable
from gpt2_common.jobs.context import Interruption
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_tokenizer.jobs import import_tokenizer
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.vocabulary.download import TokenizerDownload, download_url
from gpt2_tokenizer.vocabulary.training import train_vocabulary


class Server(ThreadingHTTPServer):
    """Serves files by path; `faults` are behaviours to show first, by path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.faults, self.asked = {}, {}, []
        self.released = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else None
        content = self.server.files.get(self.path)
        if fault == "page":
            return self.answer(200, b"<html>Please log in</html>", "text/html")
        if fault in (403, 429, 503):
            return self.answer(fault, b"no")
        if isinstance(fault, str) and fault.startswith("http"):
            self.send_response(302)
            self.send_header("Location", fault)
            self.end_headers()
            return None
        if content is None:
            return self.answer(404, b"no")
        if fault == "cut":
            return self.answer(200, content, sent=content[: len(content) // 2])
        if fault == "stall":
            self.answer(200, content, sent=content[:10])
            self.server.released.wait(20)
            return None
        return self.answer(200, content)

    def answer(self, status, content, kind="application/octet-stream", sent=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content if sent is None else sent)
        self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def small():
    return train_vocabulary(lambda: ["Der Hund läuft, der Hund bellt."] * 5, 280, 2)


@pytest.fixture
def served(server, small, tmp_path):
    (tmp_path / "source").mkdir()
    write_vocabulary(small, tmp_path / "source")
    server.files = {f"/t/{path.name}": path.read_bytes() for path in (tmp_path / "source").iterdir()}
    return server


@pytest.fixture
def download(served, tmp_path):
    def run(url="/t", **changes):
        options = {
            "url": served.url + url,
            "allowed": [served.url],
            "folder": tmp_path / "got",
            "timeout_seconds": 0.5,
            "check_cancelled": lambda: None,
            "first_wait_seconds": 0.01,
        }
        return import_vocabulary(TokenizerDownload(**{**options, **changes}).run().as_uri())

    return run


@pytest.mark.parametrize("url", ["/t", "/t/tokenizer.json"])
def test_a_folder_and_a_file_are_downloaded(download, small, url):
    assert download(url) == small


def test_other_names_of_the_pair_and_a_tokenizer_json_alone_will_do(download, served, small, tmp_path):
    files = served.files
    served.files = {"/t/vocab.json": files["/t/encoder.json"], "/t/merges.txt": files["/t/vocab.bpe"]}
    assert download() == small
    served.files = {"/t/tokenizer.json": files["/t/tokenizer.json"]}
    assert download(folder=tmp_path / "other") == small


@pytest.mark.parametrize("faults", [["cut"], ["stall"], [503, 429], ["cut", "stall", "cut"]])
def test_what_breaks_off_is_tried_again(download, served, small, faults):
    served.faults = {"/t/encoder.json": faults}
    assert download() == small


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("cut", Unavailable, "the connection ended after"),
        ("stall", Unavailable, "timed out"),
        (503, Unavailable, "HTTP 503"),
        ("page", Unavailable, "answers with a page"),
    ],
)
def test_a_server_that_stays_bad_is_unavailable(download, served, fault, error, words):
    served.faults = {"/t/encoder.json": [fault] * 4}
    with pytest.raises(error, match=words):
        download()


def test_a_server_without_the_files_is_not_found(download):
    with pytest.raises(NotFound, match=r"encoder\.json and vocab\.bpe nor vocab\.json"):
        download("/nowhere")


def test_a_file_that_is_too_large_is_refused(download):
    with pytest.raises(FailedPrecondition, match="larger than 100 bytes"):
        download(max_bytes=100)


def test_content_that_is_not_what_is_known_is_data_loss(download):
    with pytest.raises(DataLoss, match="has the SHA-256"):
        download(known_sha256={"vocab.bpe": "0" * 64})


def test_a_redirect_may_lead_only_where_a_request_may(download, served, small):
    served.faults = {"/t/encoder.json": [f"{served.url}/u/encoder.json"]}
    served.files["/u/encoder.json"] = served.files["/t/encoder.json"]
    assert download() == small
    served.faults = {"/t/encoder.json": ["http://169.254.169.254/latest"]}
    with pytest.raises(FailedPrecondition, match="redirects to 169"):
        download()


def test_a_download_can_be_cancelled(download):
    interruption = Interruption()
    interruption.cancel()
    with pytest.raises(JobCancelled):
        download(check_cancelled=interruption.check)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://good.example/models/x", True),
        ("https://good.example/models", True),
        ("https://good.example/modelsx", False),
        ("https://good.example/models/../secret", False),
        ("https://good.example/models/%2e%2e/secret", False),
        ("https://good.example/models/x?y=1", False),
        ("https://good.example@evil.example/models/x", False),
        ("https://good.example/models/\\evil", False),
        ("http://good.example/models/x", False),
        ("http://169.254.169.254/latest/meta-data", False),
        ("http://localhost:8080/", False),
    ],
)
def test_only_configured_urls_are_asked(tmp_path, url, allowed):
    settings = TokenizerSettings(artifact_root=str(tmp_path), allowed_roots="https://good.example/models/")
    if allowed:
        assert download_url(url, settings) == url
    else:
        with pytest.raises(InvalidRequest, match="GPT2_ALLOWED_ROOTS"):
            download_url(url, settings)


def test_openais_own_tokenizer_is_asked_for_by_name(server, openai_folder, make_context, tmp_path):
    server.files = {f"/m/124M/{name}": (openai_folder / name).read_bytes() for name in ("encoder.json", "vocab.bpe")}
    request = pb.ImportTokenizerRequest(uri="openai-gpt2")
    [output] = import_tokenizer(request, make_context(openai_base_url=f"{server.url}/m"))
    assert output.properties["origin"] == "openai-gpt2"
    assert output.counts["vocabulary"] == 50257
    server.files["/m/124M/vocab.bpe"] = server.files["/m/124M/vocab.bpe"][:-100]
    with pytest.raises(DataLoss):
        import_tokenizer(request, make_context("other", openai_base_url=f"{server.url}/m"))


def test_a_copy_of_openais_files_is_recognised_and_another_tokenizer_is_not(
    openai_folder, small, make_context, tmp_path
):
    shutil.copytree(openai_folder, tmp_path / "given" / "openai")
    (tmp_path / "given" / "small").mkdir()
    write_vocabulary(small, tmp_path / "given" / "small")
    origins = []
    for name in ("openai", "small"):
        request = pb.ImportTokenizerRequest(uri=(tmp_path / "given" / name).as_uri())
        origins.append(import_tokenizer(request, make_context(name))[0].properties.get("origin"))
    assert origins == ["openai-gpt2", None]


def test_a_folder_whose_links_go_in_circles_is_not_found(tmp_path, make_context):
    given = tmp_path / "given"
    given.mkdir()
    (given / "encoder.json").symlink_to("vocab.bpe")
    (given / "vocab.bpe").symlink_to("encoder.json")
    (given / "tokenizer.json").symlink_to("tokenizer.json")
    with pytest.raises(NotFound):
        import_tokenizer(pb.ImportTokenizerRequest(uri=given.as_uri()), make_context())


def test_a_link_that_leads_outside_the_roots_is_refused(tmp_path, openai_folder, make_context):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "openai").symlink_to(openai_folder)
    with pytest.raises(InvalidRequest, match="outside the allowed roots"):
        import_tokenizer(pb.ImportTokenizerRequest(uri=(tmp_path / "given" / "openai").as_uri()), make_context())
