"""The live page in a real headless Chromium."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

CHROMIUM = ("chromium", "chromium-headless-shell", "google-chrome")
WIDE, PHONE = (1200, 1500), (390, 1800)


class BrowserError(Exception):
    """Chromium or its driver is not installed."""


class Browser:
    """Headless Chromium through its WebDriver; use as a context manager.

    Raises:
        BrowserError: Chromium or chromedriver is missing.
    """

    def __enter__(self) -> Browser:
        from selenium import webdriver

        program = next(filter(None, map(shutil.which, CHROMIUM)), None)
        driver = shutil.which("chromedriver")
        if program is None or driver is None:
            raise BrowserError("chromium or its driver is missing; run `make monitoring-tools`")
        options = webdriver.ChromeOptions()
        options.binary_location = program
        # Containers have no sandbox of their own to offer and a small /dev/shm.
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def open(self, url: str, size: tuple[int, int] = WIDE) -> None:
        """Load a page in a window of width x height pixels."""
        self.driver.set_window_size(*size)
        self.driver.get(url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Value of a JavaScript function body."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, condition: str, seconds: float = 15.0) -> Any:
        """The first true value of a JavaScript expression.

        Raises:
            TimeoutError: it stays false.
        """
        deadline = time.monotonic() + seconds
        while not (value := self.run(f"return {condition}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{condition} stays false; the log: {self.console()}")
            time.sleep(0.1)
        return value

    def console(self) -> list[str]:
        """Messages of the console since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def screenshot(self, to: Path) -> None:
        """Write a PNG."""
        to.parent.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(to))
