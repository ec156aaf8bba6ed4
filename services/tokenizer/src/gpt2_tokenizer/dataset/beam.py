"""Encodes a corpus as an Apache Beam pipeline, on the runner that its options name.

Each row group of the corpus is one element. A worker reads it, encodes it into blocks and writes them to a file in the
job's folder of unfinished work, unless that exists. The job then reads the files in order. So workers need this package
and a file system where the artifact root and the corpus have the same paths as at the service.
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
from gpt2_contracts.dataset import SPLITS
from gpt2_tokenizer.corpus.reading import RowGroup, read_row_group, row_groups
from gpt2_tokenizer.corpus.selection import SPLIT_HASH
from gpt2_tokenizer.dataset.blocks import Block, encode_block
from gpt2_tokenizer.encoding.encoder import Encoder

_ARRAYS = ("numbers", "ends", "tokens")


@dataclass(frozen=True, kw_only=True)
class BeamRun:
    """An encoding by Beam; its workers get a copy."""

    corpus: Artifact
    vocabulary: Vocabulary
    validation_fraction: float
    options: tuple[str, ...]
    """Options of the pipeline, validated."""
    staging: Path
    """Folder that the workers write to."""


def beam_blocks(
    run: BeamRun, begins: Mapping[str, int], check_cancelled: Callable[[], None]
) -> Iterator[dict[str, Block]]:
    """Runs the pipeline, then yields the encoded documents in the corpus' order.

    Args:
        run: The encoding.
        begins: Number of the first document that each split still needs.
        check_cancelled: Raises when the job has to stop.

    Raises:
        FailedPrecondition: Beam is not installed.
        Unavailable: The pipeline failed.
    """
    staging = run.staging / _key(run, begins)
    staging.mkdir(parents=True, exist_ok=True)
    places = [place for place in row_groups(run.corpus) if place.begin + place.rows > min(begins.values())]
    paths = {place: staging / f"{place.begin:012d}.npz" for place in places}
    missing = [(place, path) for place, path in paths.items() if not path.exists()]
    if missing:
        _run_pipeline(run, begins, missing, check_cancelled)
    for path in paths.values():
        yield from _read(path)
        path.unlink()


def encode_row_group(encoder: Encoder, place: RowGroup, fraction: float, begins: Mapping[str, int], path: Path) -> None:
    """Encodes a row group into a file, atomically: a repetition replaces it by the same."""
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
    missing: list[tuple[RowGroup, Path]],
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
        """Encodes row groups, with one encoder per worker."""

        def setup(self) -> None:
            """Opens the encoder."""
            self._encoder = Encoder(vocabulary)

        def process(self, element: tuple[RowGroup, Path]) -> None:
            """Encodes one row group."""
            encode_row_group(self._encoder, element[0], fraction, needed, element[1])

    try:
        pipeline = beam.Pipeline(options=PipelineOptions(list(run.options)))
        elements = pipeline | "RowGroups" >> beam.Create(missing, reshuffle=False)
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
