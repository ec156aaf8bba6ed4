"""Text with undecodable bytes and lone surrogates, wherever it is quoted."""

import json
import logging
import os
import sys

import pytest

from gpt2_common.artifacts.roots import local_path, require_allowed
from gpt2_common.errors import DataLoss, InvalidRequest
from gpt2_common.escaping import escape_surrogates
from gpt2_common.logs import JsonFormatter
from gpt2_common.status import status_of

ODD = os.fsdecode(b"Gr\xf6\xdfe") + "\ud83d"
ESCAPED = r"Gr\xf6\xdfe\ud83d"


@pytest.mark.parametrize(
    ("text", "escaped"), [("plain", "plain"), ("Größe \U0001f600 \0", "Größe \U0001f600 \0"), (ODD, ESCAPED)]
)
def test_surrogates_alone_are_escaped(text, escaped):
    assert escape_surrogates(text) == escaped


def test_an_error_that_quotes_surrogates_becomes_a_status():
    for error in (DataLoss(f"{ODD} is damaged", uri=ODD), InvalidRequest([(ODD, ODD)])):
        status = status_of(error)
        assert ESCAPED in status.message
        assert ESCAPED in str(error)
        assert ESCAPED.encode() in status.details[-1].value


def test_a_disk_that_is_full_at_a_path_of_odd_bytes_becomes_a_status():
    assert status_of(OSError(28, "No space left on device", ODD)).message == (
        f"no space left on the disk at {ESCAPED}: free some and retry the job"
    )


def test_a_log_line_that_quotes_surrogates_is_json_in_utf_8():
    try:
        raise ValueError(ODD)
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "%s", (ODD,), sys.exc_info())
    record.field = {ODD: [ODD]}
    line = json.loads(JsonFormatter("a").format(record).encode())
    assert line["message"] == ESCAPED
    assert line["field"] == {ESCAPED: [ESCAPED]}
    assert ESCAPED in line["exception"]


def test_a_path_whose_name_is_not_utf_8_stays_itself(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.txt")
    path.write_text("a")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.write_text("secret")
    link = tmp_path / os.fsdecode(b"b\xfe.txt")
    link.symlink_to(outside)
    uri = require_allowed("uri", path.as_uri(), [tmp_path.as_uri()])
    assert local_path(uri).read_text() == "a"
    with pytest.raises(InvalidRequest, match="outside the allowed roots"):
        require_allowed("uri", link.as_uri(), [tmp_path.as_uri()])
