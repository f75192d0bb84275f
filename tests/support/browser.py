"""Headless Chromium, and tabs that note what goes wrong in them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESK = {"width": 1400, "height": 900}


@contextmanager
def chromium() -> Iterator:
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found:  # where one command would install it, its absence is no reason to pass
        leave = pytest.fail if shutil.which("apt-get") else pytest.skip
        leave("no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root Chromium has no sandbox; it sees nothing but our own page.
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """A tab of its own, with what went wrong in it.

    Args:
        before: a script that runs before those of the page.
    """

    def __init__(self, browser, address, size=DESK, before=None):
        self.address = address
        self.tab = browser.new_context(viewport=size).new_page()
        self.tab.set_default_timeout(10_000)
        self.errors, self.requested = [], []
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))
        self.tab.on("console", self._note)
        self.tab.on("request", lambda request: self.requested.append(request.url))
        if before:
            self.tab.add_init_script(before)
        self.tab.goto(self.address)
        self.tab.wait_for_load_state("networkidle")

    def _note(self, message):
        if message.type == "error":
            self.errors.append(message.text)

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)

    def wait_for(self, selector, text):
        self.tab.locator(selector, has_text=text).first.wait_for(state="visible")

    def text(self, selector):
        return self.tab.locator(selector).first.inner_text()

    def close(self):
        self.tab.context.close()
        assert self.errors == []
        ours = (self.address.rpartition("/")[0], "data:", "blob:")
        assert [url for url in self.requested if not url.startswith(ours)] == []
