"""Pages in a real browser, Debian's Chromium, with everything outside the machine out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Page,
        Request,
        Route,
    )

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Every figure holds a drawing, and Plotly has nothing left to do.
DRAWN = """() => [...document.querySelectorAll(".figure")].every(
    (place) => place.matches(".failed") || place.querySelector("svg.main-svg .infolayer"))"""


# A module's own: while Playwright runs, its event loop would be in the way of other tests'.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, started once for the tests of a module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine: pages cannot be opened in a browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Opener:
    """Opens a file at a width in pixels, light or dark, and waits until its figures are drawn."""

    browser: Browser
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def __call__(self, path: Path, width: int, dark: bool = False) -> Page:
        scheme: Literal["dark", "light"] = "dark" if dark else "light"
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.contexts.append(context)
        page = context.new_page()
        address = path.resolve().as_uri()
        context.route("**/*", lambda route, request: self._only(address, route, request))
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(address)
        page.wait_for_function(DRAWN)
        return page

    def _only(self, address: str, route: Route, request: Request) -> None:
        if request.url.split("#")[0] == address:
            route.continue_()
        else:
            self.outside.append(request.url)
            route.abort()

    def _listen(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.complaints.append(said.text)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """`open_page(path, width_px, dark=False)` gives Playwright's page.

    A test fails at its end if a page complained on its console, or asked for anything but itself.
    """
    opener = Opener(browser)
    yield opener
    for context in opener.contexts:
        context.close()
    assert not opener.complaints, f"the console shows errors: {opener.complaints}"
    assert not opener.outside, f"the page asks for what is outside itself: {opener.outside}"
