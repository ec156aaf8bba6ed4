"""Reads the documents of a list of files, in batches, by the format that each file's name says."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition, NotFound
from gpt2_exporter.corpus.record import Batch
from gpt2_exporter.files.document import START, FileDocument, Place
from gpt2_exporter.files.listing import PARQUET, FileListing, TextFile, describe_passed_over
from gpt2_exporter.files.objects import read_json, read_json_lines
from gpt2_exporter.files.plain import read_paragraphs, read_separated, read_text_lines, read_whole
from gpt2_exporter.files.rules import MAX_MARK_BYTES, FileRules
from gpt2_exporter.files.streams import open_seekable, open_stream, peek
from gpt2_exporter.files.table import read_csv, read_parquet

_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 4 << 20
_PLAIN = (".txt", ".md")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
OTHER_ENCODING = "byte order mark of "
"""What the reason of a file in another encoding begins with; the encoding's name follows."""
_NAMED_FILES = 3
_BY_LINE = (pb.TEXT_UNIT_LINE, pb.TEXT_UNIT_PARAGRAPH)


class FileDocuments:
    """The documents of a list of files.

    Args:
        listing: What to read, in order.
        rules: How.
        scratch: Folder to unpack a file in that cannot be read from its beginning to its end.
        check_cancelled: Raises when the job is to stop.

    Raises:
        FailedPrecondition: Lines are needed, and cannot be found in that encoding.
    """

    unit = "bytes"
    nothing = "the files hold no document: put some there, or name other files in uris"

    def __init__(
        self, listing: FileListing, rules: FileRules, scratch: Path, check_cancelled: Callable[[], None]
    ) -> None:
        self._files = files = listing.files
        self._passed_over = listing.passed_over
        self._rules = rules
        self._scratch = scratch
        self._check_cancelled = check_cancelled
        self._begins = [0]
        for file in files:
            self._begins.append(self._begins[-1] + file.size)
        lines = [file for file in files if self._is_in_lines(file)]
        if lines and not rules.has_line_ends:
            raise FailedPrecondition(
                f"{lines[0].uri} cannot be read in the encoding {rules.encoding}, in which a line's end is not one "
                f"byte: convert the {lines[0].suffix} files to utf-8, or import the other files alone"
            )

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return self._begins[-1]

    @property
    def fingerprint(self) -> str:
        """Names the files by address and size, and how they are read."""
        files = [[file.uri, file.size] for file in self._files]
        return hashlib.sha256(json.dumps([files, dataclasses.asdict(self._rules)]).encode()).hexdigest()

    @property
    def properties(self) -> Mapping[str, str]:
        """`source`: the files, or where they are and how many; `passed_over`: what else was there."""
        passed_over = describe_passed_over(self._passed_over)
        return {"source": self._source(), **({"passed_over": passed_over} if passed_over else {})}

    @property
    def summary(self) -> Mapping[str, Any]:
        """`passed_over`: how many files were not read, by suffix."""
        return {"passed_over": dict(self._passed_over)}

    def batches(self, after: str | None) -> Iterator[Batch]:
        """Yields the documents, from the first one or from the one after a place.

        Raises:
            NotFound: A file has gone since it was listed.
            FailedPrecondition: A table has no such column.
            DataLoss: A file is damaged.
        """
        first, *place = json.loads(after) if after else (0, *START)
        for index in range(first, len(self._files)):
            file = self._files[index]
            try:
                yield from self._read(index, file, Place(*place) if index == first else START)
            except FileNotFoundError as error:
                raise NotFound(f"{file.uri} has gone while the import ran: put it back, or start again") from error
            except PermissionError as error:
                raise FailedPrecondition(
                    f"{file.uri} may not be read by the exporter: change its permissions, or name other files"
                ) from error

    def _source(self) -> str:
        """The addresses of few files, else the folder that they have in common, and how many they are."""
        uris = [file.uri for file in self._files]
        if len(uris) <= _NAMED_FILES:
            return ", ".join(uris)
        # Of paths, which URIs are not, another function would find it.
        folder = os.path.commonprefix(uris).rpartition("/")[0]  # noqa: RUF071
        return f"{folder or 'several places'}: {len(uris)} files"

    def _read(self, index: int, file: TextFile, begin: Place) -> Iterator[Batch]:
        waiting: list[FileDocument] = []
        characters = 0
        with self._open(file) as stream:
            if begin == START and (encoding := self._other_encoding(file, stream)):
                # Nothing in it can be read: it is one unusable document, after which the next file is read.
                document = FileDocument("", "", f"{OTHER_ENCODING}{encoding}", Place(file.size, 0))
                yield self._batch(index, file, [document], place=json.dumps([index + 1, *START]))
                return
            for document in self._documents(file)(stream, begin, self._rules):
                waiting.append(document)
                characters += len(document.text)
                if len(waiting) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
                    yield self._batch(index, file, waiting)
                    waiting, characters = [], 0
        if waiting:
            yield self._batch(index, file, waiting)

    def _open(self, file: TextFile) -> AbstractContextManager[Any]:
        # A file of Parquet begins to be read at its end.
        if file.suffix == PARQUET:
            return open_seekable(file, self._scratch, self._check_cancelled)
        return open_stream(file)

    def _other_encoding(self, file: TextFile, stream: Any) -> str:
        """The encoding that the file's byte order mark names, where it is another one."""
        return "" if file.suffix == PARQUET else self._rules.other_encoding(peek(stream, MAX_MARK_BYTES))

    def _documents(self, file: TextFile) -> "partial[Iterator[FileDocument]]":
        readers = {
            **{end: partial(read_csv, uri=file.uri, delimiter=sign) for end, sign in _DELIMITERS.items()},
            PARQUET: partial(read_parquet, uri=file.uri),
            ".json": partial(read_json),
            ".jsonl": partial(read_json_lines),
        }
        units: dict[int, partial[Iterator[FileDocument]]] = {
            pb.TEXT_UNIT_LINE: partial(read_text_lines),
            pb.TEXT_UNIT_PARAGRAPH: partial(read_paragraphs),
        }
        if file.suffix in readers:
            return readers[file.suffix]
        if self._rules.document_separator:
            return partial(read_separated)
        return units.get(self._rules.text_unit) or partial(read_whole)

    def _batch(self, index: int, file: TextFile, documents: Sequence[FileDocument], place: str = "") -> Batch:
        """A batch; `place` is where reading goes on after it, where that is not in the file."""
        return Batch(
            ids=[f"{file.name}:{document.name}" if document.name else file.name for document in documents],
            source=file.uri,
            texts=[document.text for document in documents],
            rejects={position: document.reason for position, document in enumerate(documents) if document.reason},
            place=lambda position: place or json.dumps([index, *documents[position].after]),
            done=min(self._begins[index] + documents[-1].after.offset, self._begins[index + 1]),
        )

    def _is_in_lines(self, file: TextFile) -> bool:
        by_unit = file.suffix in _PLAIN and self._rules.text_unit in _BY_LINE
        return by_unit or file.suffix in (*_DELIMITERS, ".jsonl")
