"""The report of the fault suite: what failed, or was not run, can be missed in it as little as what passed."""

import pytest

from .fault_report import summarize


def made(name: str, outcome: str, when: str = "call", why: object = None, seen: str = "") -> pytest.TestReport:
    properties = [("seen", seen)] if seen else []
    return pytest.TestReport(
        f"tests/faults/test_x.py::{name}", ("", 0, ""), {}, outcome, why, when, user_properties=properties
    )


def test_each_promise_has_a_line_that_says_what_was_seen_of_it():
    reports = [
        made("test_a_run_is_resumed[5 s]", "passed", seen="resumed"),
        made("test_a_run_is_resumed[30 s]", "failed"),
        made("test_a_disk_is_full", "skipped", "setup", ("conftest.py", 1, "Skipped: no file system can be mounted")),
        made("test_it_starts", "failed", "setup"),
        made("test_a_run_is_resumed[5 s]", "passed", "teardown"),
    ]
    heading, *lines = (line.split("  ") for line in summarize(reports))
    assert [cell for cell in heading if cell] == ["promised", "fault", "seen"]
    assert [[cell.strip() for cell in line if cell] for line in lines] == [
        ["a run is resumed", "5 s", "resumed"],
        ["a run is resumed", "30 s", "FAILED in its call: see above"],
        ["a disk is full", "not tried: Skipped: no file system can be mounted"],
        ["it starts", "FAILED in its setup: see above"],
    ]


def test_other_suites_are_not_in_it():
    other = pytest.TestReport("services/common/tests/test_x.py::test_y", ("", 0, ""), {}, "passed", None, "call")
    assert summarize([other]) == []
