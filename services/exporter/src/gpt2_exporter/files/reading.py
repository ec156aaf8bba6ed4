"""Reads the documents of a list of files in batches, each file by the format of its suffix."""

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
from gpt2_contracts.corpus import SOURCE_PROPERTY
from gpt2_exporter.corpus.source import Batch
from gpt2_exporter.files.document import START, FileDocument, Place
from gpt2_exporter.files.json_documents import read_json, read_json_lines
from gpt2_exporter.files.listing import PARQUET, FileListing, TextFile, describe_skipped
from gpt2_exporter.files.plain_text import read_paragraphs, read_separated, read_text_lines, read_whole
from gpt2_exporter.files.rules import MAX_MARK_BYTES, FileRules
from gpt2_exporter.files.streams import open_seekable, open_stream, peek
from gpt2_exporter.files.tables import read_csv, read_parquet
from gpt2_exporter.rejects import reasons

_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 4 << 20
_PLAIN = (".txt", ".md")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MAX_NAMED_FILES = 3
_BY_LINE = (pb.TEXT_UNIT_LINE, pb.TEXT_UNIT_PARAGRAPH)


class FileDocuments:
    """The documents of a list of files.

    Args:
        listing: The files, in order.
        rules: How to read them.
        scratch: Folder to decompress files in that cannot be read sequentially.
        check_cancelled: Raises when the job has to stop.

    Raises:
        FailedPrecondition: The formats consist of lines, which cannot be found in the encoding.
    """

    unit = "bytes"
    no_documents = "the files have no document: add some, or name other files in uris"

    def __init__(
        self, listing: FileListing, rules: FileRules, scratch: Path, check_cancelled: Callable[[], None]
    ) -> None:
        self._files = files = listing.files
        self._skipped = listing.skipped
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
        """Digest of the URIs and sizes of the files, and of the rules to read them."""
        files = [[file.uri, file.size] for file in self._files]
        return hashlib.sha256(json.dumps([files, dataclasses.asdict(self._rules)]).encode()).hexdigest()

    @property
    def properties(self) -> Mapping[str, str]:
        """`source`: the files, or their folder and number; `passed_over`: the skipped files."""
        skipped = describe_skipped(self._skipped)
        return {SOURCE_PROPERTY: self._source(), **({"passed_over": skipped} if skipped else {})}

    @property
    def summary(self) -> Mapping[str, Any]:
        """`passed_over`: number of skipped files, by suffix."""
        return {"passed_over": dict(self._skipped)}

    def batches(self, resume_after: str | None) -> Iterator[Batch]:
        """Yields the documents from the first one, or from the one after a resume token.

        Raises:
            NotFound: A file was removed after it was listed.
            FailedPrecondition: A table has no such column.
            DataLoss: A file is damaged.
        """
        first, *place = json.loads(resume_after) if resume_after else (0, *START)
        for index in range(first, len(self._files)):
            file = self._files[index]
            try:
                yield from self._read(index, file, Place(*place) if index == first else START)
            except FileNotFoundError as error:
                raise NotFound(f"{file.uri} was removed while the import ran: restore it, or start again") from error
            except PermissionError as error:
                raise FailedPrecondition(
                    f"{file.uri} may not be read by the exporter: change its permissions, or name other files"
                ) from error

    def _source(self) -> str:
        """Returns the URIs of few files, else their common folder and their number."""
        uris = [file.uri for file in self._files]
        if len(uris) <= _MAX_NAMED_FILES:
            return ", ".join(uris)
        # The function that the rule recommends is for paths, which URIs are not.
        folder = os.path.commonprefix(uris).rpartition("/")[0]  # noqa: RUF071
        return f"{folder or 'several places'}: {len(uris)} files"

    def _read(self, index: int, file: TextFile, begin: Place) -> Iterator[Batch]:
        waiting: list[FileDocument] = []
        characters = 0
        with self._open(file) as stream:
            if begin == START and (encoding := self._other_encoding(file, stream)):
                # The file is one unusable document, and reading continues with the next file.
                document = FileDocument("", "", f"{reasons.OTHER_ENCODING}{encoding}", Place(file.size, 0))
                yield self._batch(index, file, [document], resume_token=json.dumps([index + 1, *START]))
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
        # Reading a Parquet file begins at its end.
        if file.suffix == PARQUET:
            return open_seekable(file, self._scratch, self._check_cancelled)
        return open_stream(file)

    def _other_encoding(self, file: TextFile, stream: Any) -> str:
        """Returns the encoding of the file's byte order mark where it is not that of the rules; else empty."""
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

    def _batch(self, index: int, file: TextFile, documents: Sequence[FileDocument], resume_token: str = "") -> Batch:
        """Returns a batch; `resume_token` is that of the whole batch where reading resumes in another file."""
        return Batch(
            ids=[f"{file.name}:{document.name}" if document.name else file.name for document in documents],
            source=file.uri,
            texts=[document.text for document in documents],
            rejects={position: document.reason for position, document in enumerate(documents) if document.reason},
            resume_token=lambda position: resume_token or json.dumps([index, *documents[position].after]),
            progress=min(self._begins[index] + documents[-1].after.offset, self._begins[index + 1]),
        )

    def _is_in_lines(self, file: TextFile) -> bool:
        by_unit = file.suffix in _PLAIN and self._rules.text_unit in _BY_LINE
        return by_unit or file.suffix in (*_DELIMITERS, ".jsonl")
