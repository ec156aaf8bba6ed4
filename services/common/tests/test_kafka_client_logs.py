"""The lines of Kafka's client that say nothing is wrong are dropped, and no others."""

import logging

import pytest
from kafka.protocol.api_versions import ApiVersionsResponse

from gpt2_common.logs import RefusedVersionFilter

RESPONSE = ApiVersionsResponse[-1]
REFUSED = b"\x00\x00\x00\x01\x00\x23\x01\x00\x12\x00\x00\x00\x02\x00\x00\x00\x00"


def undecodable(kind: type, answer: bytes) -> logging.LogRecord:
    text = "Response %d [ResponseType: %s Request: %s]: Unable to decode %d-byte buffer: %r"
    arguments = (1, kind, "request", len(answer), answer)
    return logging.LogRecord("kafka.protocol.parser", logging.ERROR, "", 0, text, arguments, None)


def closing(reason: str = "KafkaProtocolError: Unable to decode response") -> logging.LogRecord:
    arguments = ("<BrokerConnection>", reason)
    return logging.LogRecord("kafka.conn", logging.ERROR, "", 0, "%s: Closing connection. %s", arguments, None)


def test_a_refused_version_of_the_first_question_is_no_error_line():
    lines = RefusedVersionFilter()
    assert [lines.filter(undecodable(RESPONSE, REFUSED)), lines.filter(closing())] == [False, False]
    assert lines.filter(closing())


@pytest.mark.parametrize(
    ("kind", "answer"), [(RESPONSE, b"\x00\x00\x00\x01\x00\x00"), (str, REFUSED), (RESPONSE, b"HTTP/1.1 400")]
)
def test_other_answers_that_cannot_be_read_are_error_lines(kind, answer):
    lines = RefusedVersionFilter()
    assert [lines.filter(undecodable(kind, answer)), lines.filter(closing())] == [True, True]


def test_a_connection_that_closes_for_another_reason_is_an_error_line():
    lines = RefusedVersionFilter()
    lines.filter(undecodable(RESPONSE, REFUSED))
    assert lines.filter(closing("ConnectionError: reset"))
