"""Pages in a real browser, Debian's Chromium, with everything outside the machine out of reach."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
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
    """Opens a file at a width in pixels, light or dark, and waits until its figures are drawn; or
    a page of a server, which may ask that server for more. What a test provokes on the console
    goes into `expected`."""

    browser: Browser
    complaints: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    contexts: list[BrowserContext] = field(default_factory=list)

    def __call__(self, path: Path, width: int, dark: bool = False) -> Page:
        address = path.resolve().as_uri()
        page = self._page(width, dark, lambda url: url.split("#")[0] == address)
        page.goto(address)
        page.wait_for_function(DRAWN)
        return page

    def at(self, address: str, width: int = 1280, dark: bool = False, touch: bool = False) -> Page:
        """The page at an address that ends in a slash; `touch` for a phone."""
        own = (address, f"blob:{address}", "data:")
        page = self._page(width, dark, lambda url: url.startswith(own), touch)
        page.goto(address)
        return page

    def _page(
        self, width: int, dark: bool, is_own: Callable[[str], bool], touch: bool = False
    ) -> Page:
        scheme: Literal["dark", "light"] = "dark" if dark else "light"
        context = self.browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme,
            reduced_motion="reduce", has_touch=touch, is_mobile=touch,
        )  # fmt: skip
        self.contexts.append(context)
        page = context.new_page()
        context.route("**/*", lambda route, request: self._only(is_own, route, request))
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page

    def _only(self, is_own: Callable[[str], bool], route: Route, request: Request) -> None:
        if is_own(request.url):
            route.continue_()
        else:
            self.outside.append(request.url)
            route.abort()

    def _listen(self, said: ConsoleMessage) -> None:
        if said.type == "error" and not any(text in said.text for text in self.expected):
            self.complaints.append(said.text)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    """`open_page(path, width_px, dark=False)` and `open_page.at(address)` give Playwright's page.

    A test fails at its end if a page complained on its console, or asked for anything but itself
    and, where it came from a server, that server.
    """
    opener = Opener(browser)
    yield opener
    for context in opener.contexts:
        context.close()
    assert not opener.complaints, f"the console shows errors: {opener.complaints}"
    assert not opener.outside, f"the page asks for what is outside itself: {opener.outside}"
