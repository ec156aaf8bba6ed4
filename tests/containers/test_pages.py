"""The pages that the stack serves, in a browser."""

import os
from pathlib import Path

import pytest

from tests.end_to_end.browser import open_browser, why_there_is_none

from .runs import finish, start_run

pytestmark = pytest.mark.skipif(bool(why_there_is_none()), reason=why_there_is_none())
_DASHBOARD = "http://localhost:8090/"
_TENSORBOARD = "http://localhost:6006/"
_RUN = "seen"


@pytest.fixture(scope="module")
def trained(stack, documents) -> None:
    start_run(_RUN, steps=40)
    finish(_RUN)


def test_the_dashboard_shows_a_run_with_its_curves_and_its_version(trained):
    with open_browser(_DASHBOARD) as browser:
        browser.open(f"#/runs/{_RUN}")
        browser.until(lambda: browser.find(".charts .line.series-1"))
        browser.until(lambda: f"{_RUN} version 1" in browser.text("main"))
        # For the documentation: GPT2_SCREENSHOTS names a folder.
        if folder := os.environ.get("GPT2_SCREENSHOTS"):
            browser.driver.save_screenshot(str(Path(folder) / "compose-dashboard.png"))
        assert not [line for line in browser.complaints() if "SEVERE" in line]


def test_tensorboard_shows_the_curves_of_the_run(trained):
    script = """
      const scalars = await (await fetch('data/plugin/scalars/tags')).json();
      return Object.entries(scalars).filter(([run, tags]) => Object.keys(tags).length).map(([run]) => run);
    """
    with open_browser(_TENSORBOARD) as browser:
        browser.driver.get(_TENSORBOARD)
        browser.until(lambda: any(_RUN in run for run in browser.run(script)))
        browser.until(lambda: browser.find("tb-webapp"))
