"""Cuts prepared documents into row groups and shards, and notes after each shard where reading goes on."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from gpt2_common.jobs.context import JobContext
from gpt2_exporter.corpus.arrays import string_array
from gpt2_exporter.corpus.checkpoint import Checkpoint
from gpt2_exporter.corpus.preparation import Prepared
from gpt2_exporter.corpus.scripts import ScriptCounter
from gpt2_exporter.corpus.shards import SCHEMA, ShardWriter, shard_name
from gpt2_exporter.corpus.tally import Tally
from gpt2_exporter.settings import ExporterSettings

_ROW_GROUP_BYTES = 8 << 20
_ROW_GROUP_ROWS = 65_536
# Of the first documents every one is looked at for its script, then one in so many.
_SCRIPTS_OF_FIRST = 4096
_SCRIPTS_OF_ONE_IN = 64


class Assembly:
    """A corpus while it grows.

    Args:
        context: The job.
        checkpoint: Where the last attempt stopped; its tally is counted on.
        shards: Writes the files.
        folder: Where they go.
        check_limit: Raises when too many documents were left out.
        before_checkpoint: Called before each checkpoint, to save what it counts on.
    """

    def __init__(
        self,
        context: JobContext[ExporterSettings],
        checkpoint: Checkpoint,
        shards: ShardWriter,
        folder: Path,
        check_limit: Callable[[Tally], None],
        before_checkpoint: Callable[[], None],
    ) -> None:
        self._work = context.work
        self._target = context.settings.corpus_shard_bytes
        self._checkpoint = checkpoint
        self._tally = checkpoint.tally
        self._shards = shards
        self._folder = folder
        self._check_limit = check_limit
        self._before_checkpoint = before_checkpoint
        self._scripts = ScriptCounter()
        self._group: list[pa.Table] = []
        self._group_rows = self._group_bytes = self._shard_bytes = 0
        self._last_place = ""

    def add(self, prepared: Prepared) -> None:
        """Adds the documents of a batch, and counts those left out of it."""
        ends = np.cumsum(prepared.sizes)
        count, begin, position = len(prepared.positions), 0, 0
        while begin < count:
            before = int(ends[begin - 1]) if begin else 0
            room = min(self._target - self._shard_bytes, _ROW_GROUP_BYTES - self._group_bytes)
            # The document that fills a shard or a row group is its last one.
            full = int(np.searchsorted(ends, before + room)) + 1
            end = min(count, full, begin + _ROW_GROUP_ROWS - self._group_rows)
            last = int(prepared.positions[end - 1])
            self._leave_out(prepared, position, last)
            self._take(prepared, begin, end)
            self._last_place = ""
            if self._shard_bytes >= self._target:
                self._finish_shard(prepared.batch.place(last))
            elif self._group_bytes >= _ROW_GROUP_BYTES or self._group_rows >= _ROW_GROUP_ROWS:
                self._write_row_group()
            begin, position = end, last + 1
        if count:
            self._last_place = prepared.batch.place(int(prepared.positions[-1]))
        self._leave_out(prepared, position, len(prepared.batch.ids))
        self._check_limit(self._tally)

    def finish(self) -> None:
        """Finishes the last shard."""
        if self._shard_bytes:
            self._finish_shard(self._last_place)

    def _take(self, prepared: Prepared, begin: int, end: int) -> None:
        size = end - begin
        texts, sizes = prepared.texts.slice(begin, size), prepared.sizes[begin:end]
        columns = [prepared.ids.slice(begin, size), pa.repeat(string_array([prepared.batch.source])[0], size), texts]
        self._group.append(pa.Table.from_arrays(columns, schema=SCHEMA))
        first = self._tally.documents
        looked_at = [n for n in range(size) if first + n < _SCRIPTS_OF_FIRST or (first + n) % _SCRIPTS_OF_ONE_IN == 0]
        self._tally.scripts.update(self._scripts.count([texts[n].as_py() for n in looked_at]))
        self._tally.script_documents += len(looked_at)
        self._tally.accept(sizes, prepared.lengths[begin:end])
        written = int(sizes.sum())
        self._group_rows += size
        self._group_bytes += written
        self._shard_bytes += written

    def _leave_out(self, prepared: Prepared, begin: int, end: int) -> None:
        if not prepared.left_out:
            return
        for position in range(begin, end):
            if position in prepared.left_out:
                reason, unusable = prepared.left_out[position]
                batch = prepared.batch
                self._tally.leave_out(str(batch.ids[position]), batch.source, reason, unusable=unusable)

    def _write_row_group(self) -> None:
        self._shards.write(self._path, pa.concat_tables(self._group))
        self._group = []
        self._group_rows = self._group_bytes = 0

    def _finish_shard(self, place: str) -> None:
        # What a retry goes on from must not hold rejects that are over the limit: they may be mended by then.
        self._check_limit(self._tally)
        if self._group:
            self._write_row_group()
        self._before_checkpoint()
        path = self._path
        self._checkpoint.shards += 1
        self._checkpoint.after = place
        content = self._checkpoint.to_json()
        self._shards.finish(path, lambda: Checkpoint.save(self._work, content))
        self._shard_bytes = 0

    @property
    def _path(self) -> Path:
        return self._folder / shard_name(self._checkpoint.shards)
