"""Trainings of a benchmark, each done once by the trainer's own job, and kept by its settings as a line of JSON."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_contracts.metrics import TOKENS_PER_SECOND, VALIDATION_LOSS
from gpt2_contracts.training import METRICS_FILE
from gpt2_trainer.jobs.import_checkpoint import import_checkpoint
from gpt2_trainer.jobs.train import train_model
from gpt2_trainer.settings import TrainerSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a training depends on."""

    recipe: str
    """Name in tables and plots."""
    dataset: str
    """URI of the dataset artifact."""
    model: Mapping[str, int]
    config: Mapping[str, Any]
    """Fields of `TrainConfig`, without the seed."""
    seed: int
    backend: str
    checkpoint: str = ""
    """URI of the checkpoint that it starts with; empty: a new model."""

    @property
    def key(self) -> str:
        """Digest of all that decides the result."""
        content = {name: value for name, value in asdict(self).items() if name != "recipe" and value != ""}
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a training came to."""

    recipe: str
    seed: int
    config: Mapping[str, Any]
    tokens: list[int]
    """Tokens trained on by each validation."""
    losses: list[float]
    """Validation loss in nats a token."""
    seconds: float
    """Of all updates, at the speed of those after the first report; without compilation and validations."""
    key: str = field(default="")

    @property
    def final(self) -> float:
        """Validation loss after the last step."""
        return self.losses[-1]

    @property
    def best(self) -> float:
        """Validation loss of the published checkpoint."""
        return min(self.losses)


class Trainings:
    """Results in a file that grows; what is in it is not trained again.

    Args:
        folder: Where the file and the trainings' unfinished work are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = folder / "results.jsonl"
        lines = self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
        self._results = {(result := Result(**json.loads(line))).key: result for line in lines if line.endswith("}")}

    def run(self, settings: Settings) -> Result:
        """The result of a training, which is done where it is not known."""
        if settings.key not in self._results:
            result = self._train(settings)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")
            self._results[settings.key] = result
            print(_line(result), flush=True)
        return replace(self._results[settings.key], recipe=settings.recipe)

    def transplant(self, settings: Settings, tokenizer: str) -> str:
        """A training's checkpoint with another tokenizer, by its URI; made where it is not there.

        Args:
            settings: The training.
            tokenizer: URI of the tokenizer that the checkpoint is to have.
        """
        work = self._folder / f"source-{settings.key}"
        trained = self._made(work, "trained", train_model, _train_request(settings), settings)
        request = pb.ImportCheckpointRequest(uri=trained, target_tokenizer_uri=tokenizer)
        digest = hashlib.blake2b(tokenizer.encode(), digest_size=4).hexdigest()
        return self._made(work, f"transplant-{digest}", import_checkpoint, request, settings, allowed=tokenizer)

    def _made(
        self, work: Path, name: str, job: Callable[..., Any], request: Any, settings: Settings, allowed: str = ""
    ) -> str:
        """URI of the checkpoint that a job makes in a folder; the job is done where its name is not there yet."""
        done = work / f"{name}.txt"
        if not done.exists():
            context = self._context(settings, work, job_id=name, allowed=allowed)
            done.write_text(_output(job, request, context, "checkpoint"), encoding="utf-8")
        return done.read_text(encoding="utf-8")

    def _train(self, settings: Settings) -> Result:
        work = self._folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        context = self._context(settings, work, allowed=settings.checkpoint)
        logs = _output(train_model, _train_request(settings), context, "logs")
        lines = [
            json.loads(line) for line in (Path(logs.removeprefix("file://")) / METRICS_FILE).open(encoding="utf-8")
        ]
        stored = json.loads(next(work.rglob("config.json")).read_text(encoding="utf-8"))
        shutil.rmtree(work)
        per_step = stored["config"]["batch_size"] * stored["config"]["context_length"]
        validations = [line for line in lines if VALIDATION_LOSS in line]
        rates = [line[TOKENS_PER_SECOND] for line in lines if TOKENS_PER_SECOND in line]
        tokens = [line["step"] * per_step for line in validations]
        return Result(
            recipe=settings.recipe,
            seed=settings.seed,
            config=dict(settings.config),
            tokens=tokens,
            losses=[line[VALIDATION_LOSS] for line in validations],
            seconds=math.fsum(tokens[-1] / len(rates) / rate for rate in rates),
            key=settings.key,
        )

    def _context(
        self, settings: Settings, work: Path, job_id: str = "train", allowed: str = ""
    ) -> JobContext[TrainerSettings]:
        work.mkdir(exist_ok=True)
        trainer = TrainerSettings(
            artifact_root=work.as_uri(),
            allowed_roots=",".join(filter(None, (settings.dataset, allowed))),
            keras_backend=settings.backend,
            compile_cache_folder=self._folder / "compiled",
        )
        identity = JobIdentity(
            service="benchmark", job_id=job_id, run_id="benchmark", request_digest=settings.key, attempt=1
        )
        return JobContext(identity, trainer, lambda _: None, Interruption())


def _train_request(settings: Settings) -> pb.TrainModelRequest:
    start = {"checkpoint_uri": settings.checkpoint} if settings.checkpoint else {"model": settings.model}
    request = pb.TrainModelRequest(dataset_uri=settings.dataset, config=dict(settings.config), **start)
    request.config.seed = settings.seed
    return request


def _output(work: Callable[..., Any], request: Any, context: JobContext[TrainerSettings], name: str) -> str:
    """Does a job in this process. Returns the URI of one of its outputs."""
    [uri] = (made.uri for made in work(request, context) if made.name == name)
    return str(uri)


def _line(result: Result) -> str:
    rate = result.config.get("learning_rate", "default")
    return (
        f"{result.recipe}, learning rate {rate}, seed {result.seed}: loss {result.final:.4f} after "
        f"{result.tokens[-1]:,} tokens, best {result.best:.4f}, {result.seconds:.0f} s"
    )
