"""A headless Chromium that remembers what went wrong and whom it called."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

_SECONDS = 120
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900")


def why_there_is_none() -> str:
    """Why no browser can be started here; empty where one can."""
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"needs {' and '.join(missing)} (Debian's chromium and chromium-driver)" if missing else ""


class Browser:
    """One window.

    Args:
        driver: What drives it.
        home: Address of the page, with a slash at the end.
    """

    def __init__(self, driver: webdriver.Chrome, home: str) -> None:
        self.driver = driver
        self.home = home

    def open(self, place: str) -> None:
        """Loads a place of the page anew, and waits until it is there."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.home}{place}")
        self.until(lambda: self.find("main h1"))

    def find(self, selector: str) -> WebElement | None:
        """The first element; None where there is none."""
        return next(iter(self.driver.find_elements(By.CSS_SELECTOR, selector)), None)

    def click(self, selector: str, text: str = "") -> None:
        """Clicks the first element that begins with a text, once it is seen; the page may be replacing it meanwhile."""

        def done() -> bool:
            for found in self.driver.find_elements(By.CSS_SELECTOR, selector):
                if found.is_displayed() and found.text.startswith(text):
                    found.click()
                    return True
            return False

        self.until(done)

    def text(self, selector: str = "body") -> str:
        """What is seen of an element; empty where there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def run(self, script: str, *arguments: object) -> Any:
        """Runs a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def command(self, name: str, **options: object) -> Any:
        """A command of Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(name, options)

    def until(self, condition: Callable[[], Any], seconds: float = _SECONDS) -> Any:
        """Waits until a condition holds. Returns what it gave."""
        waiting = WebDriverWait(self.driver, seconds, 0.1, (StaleElementReferenceException,))
        return waiting.until(lambda _: condition())

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        """Gives the page another size."""
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    def complaints(self) -> list[str]:
        """What the console has shown since last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def hosts(self) -> set[str]:
        """Hosts, with ports, that it has called since last asked."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        urls = (item["params"]["request"]["url"] for item in messages if item["method"] == "Network.requestWillBeSent")
        return {urlsplit(url).netloc for url in urls if url.startswith("http")}


@contextmanager
def open_browser(home: str) -> Iterator[Browser]:
    """Starts a browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in _OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield Browser(driver, home)
    finally:
        driver.quit()
