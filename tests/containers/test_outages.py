"""Kafka away for a minute: the services say it once, and continue by themselves."""

import re
import time

from .runs import finish, start_run, wait_for_job

_SECONDS = 60
_ERROR = re.compile(r"\b(ERROR|%3\||FAIL\b)")
_SERVICES = ("exporter", "tokenizer", "trainer", "registry", "dashboard")


def _errors(stack, service: str) -> list[str]:
    return [line for line in stack.logs(service).splitlines() if _ERROR.search(line)]


def test_a_minute_without_kafka(stack, documents, tell):
    before = {service: len(_errors(stack, service)) for service in _SERVICES}
    start_run("without-kafka")
    wait_for_job("without-kafka", "TrainTokenizer")
    stack.compose("stop", "kafka")
    time.sleep(_SECONDS)
    stack.compose("start", "kafka")
    finish("without-kafka")
    errors = {service: _errors(stack, service)[before[service] :] for service in _SERVICES}
    counts = {service: len(lines) for service, lines in errors.items()}
    tell(f"ERROR lines for {_SECONDS} s without Kafka: {counts}")
    # A line when it goes, one a minute while it is away, one when it is back; for what consumes and what publishes.
    noisy = {service: lines[:5] for service, lines in errors.items() if counts[service] > 6}
    assert noisy == {}
