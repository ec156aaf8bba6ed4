"""Encodes a corpus as an Apache Beam pipeline, on whatever runner its options name.

Each row group of the corpus is one element. A worker reads it from the corpus' own address, encodes it into blocks and
puts them in a file of the job's folder for unfinished work, under the row group's number; what is there already is not
made again. The job then takes the files in order. So workers need this package, and see the artifact root and the
corpus at the same addresses as the service: a shared file system.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import FailedPrecondition, PipelineError, Unavailable
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_tokenizer.corpus.reading import RowGroup, read_row_group, row_groups
from gpt2_tokenizer.dataset.blocks import encode_block
from gpt2_tokenizer.dataset.shards import Block
from gpt2_tokenizer.dataset.split import SPLIT_HASH, SPLITS
from gpt2_tokenizer.encoder import Encoder

_ARRAYS = ("numbers", "ends", "tokens")


@dataclass(frozen=True, kw_only=True)
class BeamRun:
    """What is encoded, and how. It goes to the workers."""

    corpus: Artifact
    vocabulary: Vocabulary
    validation_fraction: float
    options: tuple[str, ...]
    """Options of the pipeline, already checked."""
    staging: Path
    """Folder that workers write into."""


def beam_blocks(
    run: BeamRun, begins: Mapping[str, int], check_cancelled: Callable[[], None]
) -> Iterator[dict[str, Block]]:
    """Runs the pipeline, then yields the encoded documents in the corpus' order.

    Args:
        run: What is encoded, and how.
        begins: Number of the first document that each split still needs.
        check_cancelled: Raises when the job is to stop.

    Raises:
        FailedPrecondition: Beam is not installed.
        Unavailable: The pipeline failed.
    """
    staging = run.staging / _key(run, begins)
    staging.mkdir(parents=True, exist_ok=True)
    places = [place for place in row_groups(run.corpus) if place.begin + place.rows > min(begins.values())]
    paths = {place: staging / f"{place.begin:012d}.npz" for place in places}
    todo = [(place, path) for place, path in paths.items() if not path.exists()]
    if todo:
        _run_pipeline(run, begins, todo, check_cancelled)
    for path in paths.values():
        yield from _read(path)
        path.unlink()


def encode_row_group(encoder: Encoder, place: RowGroup, fraction: float, begins: Mapping[str, int], path: Path) -> None:
    """Encodes a row group into a file, which has its name only once it is whole; repeating it does no harm."""
    arrays: dict[str, Any] = {}
    for index, batch in enumerate(read_row_group(place)):
        for split, block in encode_block(encoder, batch, fraction, begins).items():
            arrays |= {f"{index} {split} {name}": getattr(block, name) for name in _ARRAYS}
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    with os.fdopen(descriptor, "wb") as file:
        np.savez(file, **arrays)
    Path(part).replace(path)


def _read(path: Path) -> Iterator[dict[str, Block]]:
    with np.load(path, allow_pickle=False) as arrays:
        for index in range(len(arrays.files) // (len(SPLITS) * len(_ARRAYS))):
            yield {split: Block(**{name: arrays[f"{index} {split} {name}"] for name in _ARRAYS}) for split in SPLITS}


def _run_pipeline(
    run: BeamRun,
    begins: Mapping[str, int],
    todo: list[tuple[RowGroup, Path]],
    check_cancelled: Callable[[], None],
) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.runner import PipelineState
    except ImportError as error:
        raise FailedPrecondition(
            "engine: BEAM needs Apache Beam, which is not installed: install gpt2-tokenizer[beam], or use engine LOCAL"
        ) from error

    vocabulary, fraction, needed = run.vocabulary, run.validation_fraction, dict(begins)

    class EncodeRowGroup(beam.DoFn):  # type: ignore[misc, unused-ignore]
        """Encodes row groups, with one encoder for each worker."""

        def setup(self) -> None:
            """Makes the encoder."""
            self._encoder = Encoder(vocabulary)

        def process(self, element: tuple[RowGroup, Path]) -> None:
            """Encodes one row group."""
            encode_row_group(self._encoder, element[0], fraction, needed, element[1])

    try:
        pipeline = beam.Pipeline(options=PipelineOptions(list(run.options)))
        elements = pipeline | "RowGroups" >> beam.Create(todo, reshuffle=False)
        _ = elements | "Spread" >> beam.Reshuffle() | "Encode" >> beam.ParDo(EncodeRowGroup())
        result = pipeline.run()
        while result.wait_until_finish(duration=1000) is None or not PipelineState.is_terminal(result.state):
            check_cancelled()
    except PipelineError:
        raise
    except Exception as error:
        raise Unavailable(f"the Beam pipeline failed ({error}): see its runner's log, and retry the job") from error
    if result.state != PipelineState.DONE:
        raise Unavailable(
            f"the Beam pipeline ended in the state {result.state}: see its runner's log, and retry the job"
        )


def _key(run: BeamRun, begins: Mapping[str, int]) -> str:
    content = [SPLIT_HASH, run.corpus.digest, run.vocabulary.fingerprint, run.validation_fraction, dict(begins)]
    return sha256(json.dumps(content).encode()).hexdigest()[:16]
