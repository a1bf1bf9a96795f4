"""A real Chromium for tests, by Selenium and Debian's packages, and a real server for it to visit."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from waitress import wasyncore
from waitress.server import create_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--lang=en-US",
)
WAIT_SECONDS = 10.0


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A headless Chromium with an empty profile at `profile`; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver_binary = shutil.which("chromedriver")
    if binary is None or driver_binary is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver_binary, env={**os.environ, "NO_PROXY": "*", "no_proxy": "*"})
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield Browser(driver)
    finally:
        driver.quit()
        service.stop()


class Browser:
    """One tab. `open` begins afresh: what pages logged and asked for before is forgotten."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Load `url` in a window of this inner size and colour scheme."""
        self._driver.get("about:blank")
        for log in ("browser", "performance"):
            self._driver.get_log(log)
        self.look(width=width, height=height, dark=dark)
        self._driver.get(url)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Change size and colour scheme of the page that is shown."""
        self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        self._command("Emulation.setEmulatedMedia", features=[scheme, still])

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that the body of a function of `arguments` returns in the page; a promise's result."""
        outcome = self._driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"(async function () {{ {script} }}).apply(null, arguments)"
            ".then((value) => done({ value }), (problem) => done({ problem: String(problem) }));",
            *arguments,
        )
        assert "problem" not in outcome, outcome["problem"]
        return outcome.get("value")

    def wait_for(self, condition: str) -> None:
        """Return once the expression `condition` holds in the page; fails after WAIT_SECONDS."""
        held = self.run(
            f"const until = performance.now() + {WAIT_SECONDS * 1000};"
            f"while (performance.now() < until) {{ if ({condition}) return true;"
            " await new Promise((next) => setTimeout(next, 20)); } return false;"
        )
        assert held, f"never came true: {condition}"

    def press(self, *keys: str) -> None:
        """Type named keys (`Tab`, `ArrowRight`, `Enter`) on what has the focus."""
        for key in keys:
            code, text = _KEYS[key]
            for kind in ("keyDown", "keyUp"):
                more = {"text": text} if text and kind == "keyDown" else {}
                self._command(
                    "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
                )

    def complaints(self) -> list[str]:
        """What the console was told since `open`, warnings included."""
        return [
            entry["message"] for entry in self._driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]

    def hosts(self) -> set[str]:
        """The hosts (with ports) that were asked for anything since `open`."""
        messages = (json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance"))
        sent = (message["params"]["request"]["url"] for message in messages if _is_request(message))
        return {urlsplit(url).netloc.rpartition("@")[2] for url in sent}

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        size = self._command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._command("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def _command(self, command: str, **parameters: Any) -> Any:
        return self._driver.execute_cdp_cmd(command, parameters)


_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "ArrowRight": (39, ""), "ArrowLeft": (37, ""), " ": (32, " ")}


def _is_request(message: dict[str, Any]) -> bool:
    return message["method"] == "Network.requestWillBeSent" and not message["params"]["request"]["url"].startswith(
        ("data:", "about:", "chrome")
    )


@contextmanager
def serving(app: Callable[..., Any], threads: int = 8) -> Iterator[str]:
    """`app` under waitress on a free loopback port; its origin."""
    sockets: dict[int, Any] = {}
    server: Any = create_server(app, host="127.0.0.1", port=0, threads=threads, map=sockets, asyncore_use_poll=True)
    thread = threading.Thread(target=server.run, name="server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.task_dispatcher.shutdown(cancel_pending=True)
        server.trigger.pull_trigger(lambda: wasyncore.close_all(sockets, ignore_all=True))  # an empty map ends `run`
        thread.join(WAIT_SECONDS)
