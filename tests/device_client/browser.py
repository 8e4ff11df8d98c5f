"""A real browser before a real gateway: the page as a person meets it. Skips where there is no Chromium."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
from fastapi import FastAPI
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.device_client.rig import serving

MISSING = "no Chromium: install Debian's packages chromium and chromium-driver (apt-get install ...)"
PATIENCE_S = 60.0
ROOT = Path(__file__).parents[2]


class Browser:
    """One window, and what a test does with it."""

    def __init__(self, driver: webdriver.Chrome, downloads: Path) -> None:
        self.driver, self.downloads = driver, downloads

    def open(self, address: str) -> None:
        """Load a page anew and wait until its script runs."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")  # type: ignore[no-untyped-call] - forgets what earlier pages said
        self.driver.get(address)
        self.until(lambda: bool(self.run("return document.documentElement.dataset.ready")))

    def run(self, script: str, *args: object) -> object:
        """What a script in the page returns."""
        result: object = self.driver.execute_script(script, *args)  # type: ignore[no-untyped-call]
        return result

    def at(self, name: str) -> WebElement:
        """The element of that id."""
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        """What it says."""
        return self.at(name).text

    def fill(self, name: str, words: str) -> None:
        """Type into a field that may hold something."""
        self.at(name).clear()
        self.at(name).send_keys(words)

    def choose(self, mode: str) -> None:
        """Choose who decides."""
        self.driver.find_element(By.CSS_SELECTOR, f"input[value={mode}]").click()

    def draw(self, words: str, seed: int, mode: str = "ciar", compare: bool = False) -> None:
        """Fill the form in and click."""
        self.fill("prompt", words)
        self.fill("seed", str(seed))
        if mode != "cloud-only" and self.at("compare").is_selected() != compare:
            self.at("compare").click()
        self.choose(mode)
        self.at("draw").click()

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; what the page says is the error otherwise."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, self.driver.find_element(By.TAG_NAME, "body").text
            time.sleep(0.02)

    def until_idle(self) -> None:
        """Wait until nothing is being drawn."""
        self.until(lambda: self.at("draw").is_enabled())

    def canvas(self, name: str) -> Image.Image:
        """The pixels of a canvas."""
        url = self.run("return document.getElementById(arguments[0]).toDataURL()", name)
        return Image.open(BytesIO(base64.b64decode(str(url).partition(",")[2])))

    def complaints(self) -> list[str]:
        """What the console says against the page."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextmanager
def chromium(downloads: Path) -> Iterator[Browser]:
    """A headless browser. Skips the test where the system has none."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip(MISSING)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(window, downloads)
    finally:
        window.quit()


@contextmanager
def behind_a_socket(app: FastAPI) -> Iterator[str]:
    """The application in a thread of its own: its address. A browser is driven by blocking calls."""
    ready: list[str] = []
    begun, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with serving(app) as address:
            ready.append(address)
            begun.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert begun.wait(PATIENCE_S)
        yield ready[0]
    finally:
        ended.set()
        thread.join()


class CloudProcess:
    """`cloud-server` in a process of its own, for tests that kill it."""

    def __init__(self, folder: str, log: Path) -> None:
        command = [sys.executable, "-m", "cloud_server.cli", "--model", folder, "--port", "0"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CIAR_")}
        with log.open("w") as sink:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=sink, env=environment)
        self.target = f"127.0.0.1:{self._port(log)}"

    def kill(self) -> None:
        """At once, as a power cut would."""
        self._process.kill()
        self._process.wait()

    def _port(self, log: Path) -> str:
        end = time.monotonic() + PATIENCE_S
        while self._process.poll() is None and time.monotonic() < end:
            if match := re.search(r"serving .* on [^ ]+:(\d+)", log.read_text()):
                return match[1]
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"no server: {log.read_text()}")
