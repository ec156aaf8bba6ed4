"""Measures an export from MongoDB against a bare loop that reads the same documents and only counts their bytes.

Both run as their own processes, in turn, against the same server; the fastest round of each counts. Servers:
`embedded` is the one that comes with the project, `ferretdb` a FerretDB with SQLite (--ferretdb PATH of the binary that
`go build -tags ferretdb_sqlite` makes in services/exporter/tests/ferretdb), `uri` any other, and `stand-in` one with
no work to do, which shows how fast the exporter itself is.

As in a pipeline, the snapshot is there before the export begins: `snapshot s` is what it took, which is next to nothing
on MongoDB, and a reading of everything on servers that do not use their index for it.

export.py [--quick] [--servers embedded,stand-in] [--sizes 1000,10000] [--documents 100000] [--memory 100000,1000000]
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pymongo
from export_stand_in import texts

DATABASE, COLLECTION = "benchmark", "documents"
HERE = Path(__file__).parent


def bare(uri: str) -> dict[str, float]:
    """Reads everything and counts bytes."""
    with pymongo.MongoClient(uri) as client:
        begin = time.perf_counter()
        size = sum(map(len, client[DATABASE][COLLECTION].find_raw_batches({}, {"_id": 1, "text": 1})))
        return {"seconds": time.perf_counter() - begin, "bytes": size}


def ours(uri: str) -> dict[str, float]:
    """Runs the job of an export, to the finished corpus."""
    from gpt2.exporter.v1 import exporter_service_pb2 as pb
    from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
    from gpt2_exporter.jobs import export_corpus
    from gpt2_exporter.mongo.connection import connect
    from gpt2_exporter.mongo.snapshot import take_snapshot
    from gpt2_exporter.settings import ExporterSettings

    with tempfile.TemporaryDirectory() as folder:
        settings = ExporterSettings(mongodb_uri=uri, artifact_root=folder)
        identity = JobIdentity(service="exporter", job_id="j", run_id="j", request_digest="d", attempt=1)
        context = JobContext(identity, settings, lambda _: None, Interruption())
        source = pb.MongoSource(database=DATABASE, collections=[COLLECTION])
        looked = time.perf_counter()
        with connect(settings, "") as found:
            snapshot = take_snapshot(found, source).token()
        looked = time.perf_counter() - looked
        request = pb.ExportCorpusRequest(source=source, snapshot=snapshot)
        begin = time.perf_counter()
        [output] = export_corpus(request, context)
        seconds = time.perf_counter() - begin
        documents = output.counts["documents"]
    return {"seconds": seconds, "documents": documents, "looked": looked}


def measure(what: str, uri: str) -> dict[str, float]:
    """Runs one of the two in its own process; adds its peak memory in MiB."""
    command = [sys.executable, __file__, "--child", what, uri]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


@contextlib.contextmanager
def process(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is stopped at the end."""
    with (folder / "errors").open("w") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def server(kind: str, documents: int, characters: int, options: argparse.Namespace) -> Iterator[str]:
    """A server that holds the documents; its URI."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "stand-in":
            command = [sys.executable, str(HERE / "export_stand_in.py"), str(documents), str(characters)]
            with process(command, folder) as child:
                yield f"mongodb://127.0.0.1:{int(child.stdout.readline())}"
            return
        if kind == "uri":
            fill(options.uri, documents, characters)
            yield options.uri
            return
        command = [sys.executable, "-m", "gpt2_orchestration.stack.mongodb", "data", f"127.0.0.1:{options.port}"]
        if kind == "ferretdb":
            command = [options.ferretdb, f"127.0.0.1:{options.port}", str(folder)]
        with process(command, folder):
            uri = f"mongodb://127.0.0.1:{options.port}"
            fill(uri, documents, characters)
            yield uri


def fill(uri: str, documents: int, characters: int) -> None:
    """Puts the documents in, in place of those that are there."""
    pool = texts(1000, characters)
    with pymongo.MongoClient(uri) as client:
        client.drop_database(DATABASE)
        for begin in range(0, documents, 1000):
            batch = [{"text": pool[n % len(pool)], "n": n} for n in range(begin, min(begin + 1000, documents))]
            client[DATABASE][COLLECTION].insert_many(batch)


def compare(kind: str, documents: int, characters: int, rounds: int, options: argparse.Namespace) -> None:
    """Prints a row: both, interleaved, against one server."""
    times: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    with server(kind, documents, characters, options) as uri:
        for _ in range(rounds):
            for what, found in times.items():
                found.append(measure(what, uri))
    best = {what: min(result["seconds"] for result in found) for what, found in times.items()}
    looked = min(result["looked"] for result in times["ours"])
    peak = max(result["peak"] for result in times["ours"])
    print(
        f"{kind:10} {characters:>10,} {documents:>10,} {documents / best['bare']:>12,.0f} "
        f"{documents / best['ours']:>12,.0f} {best['bare'] / best['ours']:>6.2f} {peak:>9.0f} {looked:>10.2f}",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few documents, one round")
    parser.add_argument("--servers", default="embedded,stand-in")
    parser.add_argument("--sizes", default="1000,10000", help="characters of a document")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument(
        "--memory", default="100000,1000000", help="documents, against the stand-in, of 1,000 characters"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=27_917)
    parser.add_argument("--uri", default="")
    parser.add_argument("--ferretdb", default="ferretdb")
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        what, uri = options.child
        result = {"bare": bare, "ours": ours}[what](uri)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({**result, "peak": peak}))
        return
    if options.quick:
        options.documents, options.rounds, options.memory = 10_000, 1, "10000,100000"
    print(
        f"{'server':10} {'characters':>10} {'documents':>10} {'bare docs/s':>12} {'ours docs/s':>12} ratio  "
        "peak MiB snapshot s",
        flush=True,
    )
    for kind in options.servers.split(","):
        for characters in map(int, options.sizes.split(",")):
            compare(kind, options.documents, characters, options.rounds, options)
    for documents in filter(None, options.memory.split(",")):
        compare("stand-in", int(documents), 1000, 1, options)


if __name__ == "__main__":
    main()
