"""What a long history costs: lists of runs and jobs, and one run, with 20,000 runs and more in the job stores.

    .venv/bin/python benchmarks/history.py [--runs 20000 --runs 166667] [--folder FOLDER]

Fills the stores of all four services with made-up runs of six jobs each, as rows of the layout without tables for
lists, so that the same folder can be measured with older code first: the services bring it up to date when they
start. Then the real services are started on it, without Kafka, and asked as the command line and the dashboard ask.
"""

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from gpt2.jobs.v1 import job_pb2
from gpt2_contracts.events import source_of
from gpt2_orchestration.client.run_pagination import newest_runs
from gpt2_orchestration.client.runs import show_run
from gpt2_orchestration.client.service_client import ClientSettings, ServiceClient, ServiceError, connect
from gpt2_orchestration.client.services import open_services
from gpt2_orchestration.stack.ports import HOST, choose_ports

STAGES = (
    ("exporter", "ExportCorpus", "corpus"),
    ("tokenizer", "TrainTokenizer", "tokenizer"),
    ("tokenizer", "EncodeCorpus", "dataset"),
    ("trainer", "TrainModel", "checkpoint"),
    ("trainer", "ExportModel", "model"),
    ("registry", "RegisterModel", "version"),
)
SERVICES = ("exporter", "tokenizer", "trainer", "registry")
_FIRST_START = 1_700_000_000
_RUN_EVERY_SECONDS = 60
_STAGE_SECONDS = 600
_FAILING = 10
"""One run in so many ends with a failed job."""
_ROWS_AT_ONCE = 5000
_REPEATS = 15
_START_SECONDS = 1800
_OLD_LAYOUT = """
CREATE TABLE jobs (
    position INTEGER NOT NULL, service VARCHAR(32) NOT NULL, job_id VARCHAR(200) NOT NULL,
    run_id VARCHAR(200) NOT NULL, kind VARCHAR(64) NOT NULL, state INTEGER NOT NULL,
    revision BIGINT NOT NULL, job BLOB NOT NULL, request BLOB NOT NULL, owner VARCHAR(300),
    leased_until FLOAT, deaths INTEGER, mark VARCHAR(300),
    PRIMARY KEY (position), UNIQUE (service, job_id)
);
CREATE INDEX ix_jobs_run_id ON jobs (run_id);
CREATE INDEX ix_jobs_state ON jobs (state);
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a run of `gpt2 runs list` took."""

    first_seconds: float
    """To its first output."""
    seconds: float
    megabytes: float
    peak_mib: float
    failed: bool

    def took(self) -> str:
        """Seconds to its end."""
        return f"{self.seconds:,.2f} s{' (failed)' if self.failed else ''}"


def made_up_runs(runs: int) -> Iterator[tuple[str, tuple[object, ...]]]:
    """The rows of runs, oldest first, each with the name of its service."""
    plan = job_pb2.RunPlan()
    artifacts = []
    templates = []
    for _, kind, output in STAGES[1:]:
        stage = plan.stages.add(start=kind)
        # As long as the request of a stage that is written out whole.
        stage.request.update({f"setting_{number}_of_{output}": 1000.5 * number for number in range(10)})
    for service, kind, output in STAGES:
        job = job_pb2.Job(service=service, kind=kind, attempt=1, revision=40, request_digest="ab" * 32)
        job.plan.stages.extend(plan.stages[len(templates) :])
        job.plan.artifacts.extend(artifacts)
        job.plan.cause.source, job.plan.cause.id = source_of(service), "0f" * 16
        job.progress.phase, job.progress.done, job.progress.total, job.progress.unit = "writing", 1e6, 1e6, "bytes"
        made = job.outputs.add(name=output, kind=output, digest="cd" * 32)
        made.uri = f"file:///data/artifacts/{kind}/a-run-of-made-up-history/0123456789abcdef/{output}"
        made.counts.update({"bytes": 1e9, "documents": 1e6, "tokens": 2e8, "validation_loss": 3.25})
        made.properties.update({f"property_{number}": "ef" * 32 for number in range(2)})
        made.properties.update({"model_name": "made-up", "version": "1"} if output == "version" else {})
        artifacts.append(made)
        templates.append(job)
    position = dict.fromkeys(SERVICES, 0)
    for number in range(runs):
        run_id = f"run-{number:07d}"
        for stage, template in enumerate(templates):
            job = job_pb2.Job()
            job.CopyFrom(template)
            job.run_id, job.job_id = run_id, f"{run_id}/{template.kind.lower()}"
            start = _FIRST_START + number * _RUN_EVERY_SECONDS + stage * _STAGE_SECONDS
            job.create_time.FromSeconds(start)
            job.start_time.FromSeconds(start + 1)
            job.end_time.FromSeconds(start + _STAGE_SECONDS - 1)
            job.update_time.FromSeconds(start + _STAGE_SECONDS - 1)
            failed = number % _FAILING == 0 and stage == len(templates) - 1
            job.state = job_pb2.Job.STATE_FAILED if failed else job_pb2.Job.STATE_SUCCEEDED
            if failed:
                job.error.code, job.error.message = (
                    9,
                    "the model is worse than the one that has the label: " + "why " * 40,
                )
                job.ClearField("outputs")
            # A request has the plan inside, among the options of its job.
            request = job.plan.SerializeToString()
            position[job.service] += 1
            yield (
                job.service,
                (
                    position[job.service],
                    job.service,
                    job.job_id,
                    run_id,
                    job.kind,
                    job.state,
                    job.revision,
                    job.SerializeToString(),
                    request,
                ),
            )


def fill(folder: Path, runs: int) -> None:
    """Makes the stores of all services, unless the folder has them already."""
    if (folder / "filled").exists():
        return
    for service in SERVICES:
        create_old_layout(folder / f"{service}.db")
    with ExitStack() as opened:
        stores = {
            service: opened.enter_context(closing(sqlite3.connect(folder / f"{service}.db"))) for service in SERVICES
        }
        for store in stores.values():
            store.execute("PRAGMA journal_mode=OFF")
            store.execute("PRAGMA synchronous=OFF")
        waiting: dict[str, list[tuple[object, ...]]] = {service: [] for service in SERVICES}

        def write(service: str) -> None:
            stores[service].executemany(
                "INSERT INTO jobs (position, service, job_id, run_id, kind, state, revision, job, request) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                waiting[service],
            )
            stores[service].commit()
            waiting[service].clear()

        for service, row in made_up_runs(runs):
            waiting[service].append(row)
            if len(waiting[service]) == _ROWS_AT_ONCE:
                write(service)
        for service, store in stores.items():
            write(service)
            store.execute("PRAGMA journal_mode=WAL")
    (folder / "filled").touch()


def create_old_layout(path: Path) -> None:
    """Makes the table of jobs as it was before lists had their own tables."""
    with closing(sqlite3.connect(path)) as store:
        store.executescript(_OLD_LAYOUT)


@contextmanager
def services_on(folder: Path) -> Iterator[tuple[ClientSettings, dict[str, psutil.Process]]]:
    """Starts the four services on the stores. Gives where they are, and their processes."""
    ports = choose_ports(dict.fromkeys(SERVICES, 0))
    addresses = {service: f"{HOST}:{port}" for service, port in ports.items()}
    processes = {}
    try:
        for service, address in addresses.items():
            own = {
                "GPT2_LISTEN": address,
                "GPT2_ARTIFACT_ROOT": str(folder / "artifacts"),
                "GPT2_SCRATCH_FOLDER": str(folder / "scratch" / service),
                "GPT2_DATABASE_URL": f"sqlite:///{folder / service}.db",
                "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
                "GPT2_LOG_LEVEL": "WARNING",
            }
            processes[service] = psutil.Popen([sys.executable, "-m", f"gpt2_{service}"], env={**os.environ, **own})
        settings = ClientSettings(addresses=addresses)
        for service in SERVICES:
            with connect(service, settings) as client:
                wait_until_ready(client)
        yield settings, processes
    finally:
        for process in processes.values():
            process.terminate()
        for process in processes.values():
            process.wait(60)


def wait_until_ready(client: ServiceClient) -> None:
    """Waits for a service, which first brings its store up to date."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.describe()
        except ServiceError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def milliseconds(act: Callable[[], object], repeats: int = _REPEATS) -> str:
    """The median time of something, after it was done once."""
    times = []
    try:
        act()
        for _ in range(repeats):
            began = time.monotonic()
            act()
            times.append((time.monotonic() - began) * 1000)
    except ServiceError as error:
        return error.code.name
    return f"{median(times):,.0f} ms"


def listing(settings: ClientSettings, *options: str) -> Listing:
    """Runs `gpt2 runs list`."""
    addresses = {f"GPT2_{service.upper()}_ADDRESS": address for service, address in settings.addresses.items()}
    program = Path(sys.executable).with_name("gpt2")
    began = time.monotonic()
    process = psutil.Popen([program, "runs", "list", *options], env={**os.environ, **addresses}, stdout=subprocess.PIPE)
    first, size, peak = 0.0, 0, 0.0
    while chunk := os.read(process.stdout.fileno(), 1 << 16):
        first = first or time.monotonic() - began
        size += len(chunk)
        peak = max(peak, peak_mib(process))
    return Listing(first, time.monotonic() - began, size / 1e6, peak, failed=process.wait() != 0)


def peak_mib(process: psutil.Process) -> float:
    """The most memory that a process has had so far, in MiB, or since `forget_peak`."""
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except FileNotFoundError:
        pass
    return 0.0


def forget_peak(process: psutil.Process) -> None:
    """Lets `peak_mib` begin anew."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


def measure(folder: Path, runs: int, stream: int) -> list[Figure]:
    """Starts the services on a filled folder and measures what lists cost."""
    began = time.monotonic()
    rows = []
    with services_on(folder) as (settings, processes), open_services(settings) as services:
        rows.append(Figure("services start on it", f"{time.monotonic() - began:,.1f} s"))
        middle, trainer = f"run-{runs // 2:07d}", services.clients["trainer"]
        failed = (job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED)
        asked = {
            "page of 50 runs": lambda: newest_runs(services, 50),
            "one run, whole": lambda: show_run(settings, middle),
            "ListJobs, 100 jobs": lambda: trainer.jobs("", limit=100),
            "ListJobs, 500 jobs": lambda: trainer.jobs("", limit=500),
            "ListJobs, 100 that failed": lambda: trainer.jobs("", failed, limit=100),
        }
        rows += [Figure(name, milliseconds(act)) for name, act in asked.items()]
        rows.append(Figure("`gpt2 runs list --limit 20`", listing(settings, "--limit", "20").took()))
        for process in processes.values():
            forget_peak(process)
        before = max(peak_mib(process) for process in processes.values())
        many = f"`--limit {stream}`"
        as_json = listing(settings, "--limit", str(stream), "--json")
        after = max(peak_mib(process) for process in processes.values())
        as_table = listing(settings, "--limit", str(stream))
        rows += [
            Figure(f"{many} as JSON", as_json.took()),
            Figure(f"{many} as JSON, to its first output", f"{as_json.first_seconds:,.2f} s"),
            Figure(f"{many} as JSON, output", f"{as_json.megabytes:,.1f} MB"),
            Figure(f"{many} as JSON, peak of the client", f"{as_json.peak_mib:,.0f} MiB"),
            Figure(f"{many} as JSON, peak of a service (before)", f"{after:,.0f} MiB ({before:,.0f})"),
            Figure(f"{many} as a table", as_table.took()),
            Figure(f"{many} as a table, peak of the client", f"{as_table.peak_mib:,.0f} MiB"),
        ]
    return rows


def main() -> None:
    """Fills, measures and prints, for each length of history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, action="append", help="runs of six jobs; repeatable (default: 20000 166667)"
    )
    parser.add_argument("--stream", type=int, default=20_000, help="runs that are listed whole (default: 20000)")
    parser.add_argument("--folder", type=Path, help="where the stores are kept, to be measured again")
    options = parser.parse_args()
    found: dict[int, list[Figure]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for runs in options.runs or [20_000, 166_667]:
            folder = (options.folder or Path(temporary)) / str(runs)
            folder.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            fill(folder, runs)
            print(f"{runs:,} runs are there after {time.monotonic() - began:.0f} s", flush=True)
            found[runs] = measure(folder, runs, min(runs, options.stream))
            for figure in found[runs]:
                print(f"  {figure.name}: {figure.value}", flush=True)
    columns = [f"{6 * runs:,} jobs" for runs in found]
    print(f"\n| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for row in zip(*found.values(), strict=True):
        print(f"| {row[0].name} | {' | '.join(figure.value for figure in row)} |")


if __name__ == "__main__":
    main()
