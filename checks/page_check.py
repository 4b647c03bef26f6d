"""The live page in Chromium while a server works: what a person would look at, checked."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monitoring.browser import PHONE, WIDE, Browser
from testbench.progress import say

WATCH_SECONDS = 0.25
CLOSELY_AFTER = 20
"""Censuses the page has shown before the rest is checked."""
SHOWN = """
return {
  at: Number(document.getElementById("used").dataset.at),
  used: Number(document.getElementById("used").dataset.bytes),
  pending: shown ? shown.pending_bytes : 0,
  heads: [...document.querySelectorAll(".cell")].map((cell) => Number(cell.dataset.bytes)),
  requests: document.querySelectorAll("#requests tbody tr").length,
};
"""
WIDER_THAN_WINDOW = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


class LivePageCheck:
    """Watches /headaware of a server; use as a context manager.

    Args:
        url: of the server.
        folder: gets the pictures.

    Attributes:
        seen: census time -> (bytes held, sum over heads and pending), as the page showed them.
        failures: what was wrong, in sentences.
        looked_closely: whether more than the numbers has been checked.
    """

    def __init__(self, url: str, folder: Path, closely_after: int = CLOSELY_AFTER) -> None:
        self.page, self.folder, self.closely_after = url + "/headaware", folder, closely_after
        self.seen: dict[float, tuple[float, float]] = {}
        self.failures: list[str] = []
        self.looked_closely = False
        self._browser = Browser()

    def __enter__(self) -> LivePageCheck:
        self._browser.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.__exit__()

    def watch(self, until: Callable[[], bool]) -> None:
        """Look at the page until told; the rest is checked once requests are shown."""
        browser = self._browser
        browser.open(self.page, WIDE)
        browser.wait_for("cells.length > 0 && shown !== null")
        while not until():
            page: dict[str, Any] = browser.run(SHOWN)
            self.seen[page["at"]] = (page["used"], sum(page["heads"]) + page["pending"])
            enough = page["requests"] and len(self.seen) > self.closely_after
            if enough and not self.looked_closely:
                self.looked_closely = True
                self._look_closely()
            time.sleep(WATCH_SECONDS)
        if not self.looked_closely:
            self.failures.append("the page never showed a request")
        self.failures += [f"console: {message}" for message in browser.console()]

    def _look_closely(self) -> None:
        browser, failures = self._browser, self.failures
        say(f"the page shows requests; pictures go to {self.folder}")
        browser.screenshot(self.folder / "page.png")
        layers, heads = browser.run("return [plan.geometry.num_layers, plan.geometry.num_kv_heads]")
        if browser.run("return document.querySelectorAll('.cell').length") != layers * heads:
            failures.append("not every head has a cell")
        browser.run("document.querySelector('.cell[tabindex=\"0\"]').focus()")
        self._press("ARROW_RIGHT")
        if not browser.run("return document.activeElement.ariaLabel").startswith("Layer 1,"):
            failures.append("the right arrow does not move to the next layer")
        browser.open(self.page, PHONE)
        browser.wait_for("cells.length > 0 && shown !== null")
        browser.screenshot(self.folder / "page-phone.png")
        if browser.run(f"return {WIDER_THAN_WINDOW}"):
            failures.append("the page is wider than a phone")
        browser.open(self.page, WIDE)
        browser.wait_for("cells.length > 0 && shown !== null")

    def _press(self, key: str) -> None:
        from selenium.webdriver.common.keys import Keys

        self._browser.driver.switch_to.active_element.send_keys(getattr(Keys, key))
