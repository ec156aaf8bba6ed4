"""A small server that speaks a Hugging Face hub's protocol: listings by revision, files with ETags, LFS redirects."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c0ffee" * 6 + "c0de"
REPOSITORY = "lab/small-gpt2"
LFS_BYTES = 2000


class Hub:
    """A hub with one model. `failures` are HTTP statuses and error codes that requests for a path meet, in turn."""

    def __init__(self, folder, revisions=("main", "v1.0", COMMIT)):
        self.folder, self.revisions = folder, revisions
        self.failures, self.requests, self.token = {}, [], None
        self.corrupt, self.tokens_at_cdn = set(), []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            def do_HEAD(self):
                hub.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def downloads(self):
        """Names of the files whose content was sent."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/api/" not in path]

    def answer(self, handler):
        path = unquote(handler.path.partition("?")[0])
        self.requests.append((handler.command, path))
        name = path.rpartition("/")[2]
        waiting = self.failures.get(name) or self.failures.get("*")
        if waiting:
            return self.fail(handler, *waiting.pop(0))
        if (
            self.token
            and not path.startswith("/cdn/")
            and handler.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            return self.fail(handler, 401, "RepoNotFound")
        if path.startswith("/api/models/"):
            return self.listing(handler, path.removeprefix("/api/models/"))
        if path.startswith("/cdn/"):
            self.tokens_at_cdn += handler.headers.get_all("Authorization", [])
            return self.send(handler, name, {"ETag": '"cdn"'})
        repository, _, rest = path.strip("/").partition("/resolve/")
        revision = rest.removesuffix(f"/{name}")
        if repository != REPOSITORY or revision not in self.revisions:
            return self.fail(handler, 404, "RepoNotFound" if repository != REPOSITORY else "RevisionNotFound")
        if not (self.folder / name).is_file():
            return self.fail(handler, 404, "EntryNotFound")
        return self.file(handler, name)

    def listing(self, handler, rest):
        repository, _, revision = rest.partition("/revision/")
        if repository != REPOSITORY:
            return self.fail(handler, 404, "RepoNotFound")
        if revision not in self.revisions:
            return self.fail(handler, 404, "RevisionNotFound")
        siblings = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
        content = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings, "tags": []}
        return self.send_bytes(handler, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def file(self, handler, name):
        content = (self.folder / name).read_bytes()
        if len(content) < LFS_BYTES:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self.send(handler, name, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})
        handler.send_response(302)
        handler.send_header("X-Repo-Commit", COMMIT)
        handler.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        handler.send_header("X-Linked-Size", str(len(content)))
        # Another host, as a CDN is.
        handler.send_header("Location", f"http://localhost:{self.server.server_port}/cdn/{name}")
        handler.send_header("Content-Length", "0")
        return handler.end_headers()

    def send(self, handler, name, headers):
        content = (self.folder / name).read_bytes()
        if name in self.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_bytes(handler, content, headers)

    def send_bytes(self, handler, content, headers):
        handler.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(content)

    def fail(self, handler, status, code=""):
        handler.send_response(status)
        if code:
            handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
