"""The voting page as voters use it: in headless Chromium, by keyboard, by clicks and on a phone."""

import json
import threading
from contextlib import contextmanager

import pytest
from support.browser import DESK, Page, chromium
from support.ports import free_port
from support.preferences import make_samples

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import read_votes
from emu3_megatron.alignment.voting.server import VotingServer

pytestmark = pytest.mark.slow

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@contextmanager
def serving(folder, *voters, port=0):
    server = VotingServer(Samples(folder), voters or ("ann",), port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.pages = []
    try:
        yield server
        for page in server.pages:
            page.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def opened(browser):
    """A function that opens a voter's page; with its server it ends, without errors till then."""

    def open_page(server, voter="ann", size=DESK):
        server.pages.append(Page(browser, server.address(voter), size))
        return server.pages[-1]

    return open_page


@pytest.fixture
def folder(tmp_path):
    """Three prompts with eight samples each."""
    return make_samples(tmp_path / "samples", each=8)


def votes(folder, voter="ann"):
    """Best and worst of each prompt."""
    given = read_votes(Samples(folder)).get(voter, {})
    return {
        prompt: (max(scores, key=scores.get), min(scores, key=scores.get))
        for prompt, scores in given.items()
    }


def test_two_keys_are_a_vote(folder, opened):
    with serving(folder) as server:
        page = opened(server)
        page.wait_for("#step", "Pick the best")

        page.press("3")
        page.wait_for("#step", "Now pick the worst")
        page.press("8")

        page.wait_for("#prompt", "a cat 1")
        assert page.text("#count") == "1 of 3"
        order = server.sessions["ann"].order(0)
        assert votes(folder) == {0: (order[2], order[7])}


def test_the_best_is_not_the_worst(folder, opened):
    with serving(folder) as server:
        page = opened(server)

        page.press("3", "3", "3")

        assert page.text("#step") == "Now pick the worst"
        assert page.text("#prompt") == "a cat 0"
    assert votes(folder) == {}


def test_no_difference_by_key(folder, opened):
    with serving(folder) as server:
        page = opened(server)

        page.press("n")
        page.wait_for("#prompt", "a cat 1")

    line = json.loads((folder / "votes-ann.jsonl").read_text(encoding="utf-8"))
    assert line["no_difference"]


@pytest.mark.parametrize("key", ["u", "Backspace"])
def test_undo(key, folder, opened):
    with serving(folder) as server:
        page = opened(server)
        page.press("1", "2")
        page.wait_for("#prompt", "a cat 1")

        page.press("4", key)  # the pick of the best alone
        assert page.text("#step") == "Pick the best"
        assert page.text("#prompt") == "a cat 1"
        page.press(key)  # the vote before it
        page.wait_for("#prompt", "a cat 0")
        assert votes(folder) == {}
        page.press("5", "6")
        page.wait_for("#prompt", "a cat 1")

        order = server.sessions["ann"].order(0)
        assert votes(folder) == {0: (order[4], order[5])}


def test_a_reload_goes_on_and_shows_the_same_order(folder, opened):
    with serving(folder) as server:
        page = opened(server)
        page.press("1", "2")
        page.wait_for("#prompt", "a cat 1")
        before = page.tab.locator(".sample img").evaluate_all("all => all.map(i => i.src)")

        page.tab.reload()
        page.wait_for("#prompt", "a cat 1")

        after = page.tab.locator(".sample img").evaluate_all("all => all.map(i => i.src)")
        assert after == before
        assert page.text("#count") == "1 of 3"


def test_a_page_goes_on_after_the_server_was_restarted(folder, browser):
    port = free_port()
    with serving(folder, port=port) as server:
        page = Page(browser, server.address("ann"), DESK)
        page.press("1", "2")
        page.wait_for("#prompt", "a cat 1")
    page.press("3", "4")
    page.wait_for("#trouble", "The server does not answer")
    with serving(folder, port=port) as server:
        page.press("3", "4")  # with the token of the first server: the page loads itself again
        page.wait_for("#step", "Pick the best")
        assert page.text("#prompt") == "a cat 1"
        page.press("3", "4")
        page.wait_for("#prompt", "a cat 2")
    page.tab.context.close()
    assert votes(folder).keys() == {0, 1}


def test_two_voters_at_the_same_time(folder, opened):
    with serving(folder, "ann", "ben") as server:
        ann, ben = opened(server, "ann"), opened(server, "ben")

        ann.press("1", "2")
        ben.press("1")
        ann.wait_for("#prompt", "a cat 1")
        ben.press("2")
        ben.wait_for("#prompt", "a cat 1")
        ann.press("1", "2")
        ann.wait_for("#prompt", "a cat 2")

        assert ben.text("#count") == "1 of 3"
        orders = {voter: server.sessions[voter].order(0)[:2] for voter in ("ann", "ben")}
    assert orders["ann"] != orders["ben"]
    assert votes(folder, "ann")[0] == tuple(orders["ann"])
    assert votes(folder, "ben") == {0: tuple(orders["ben"])}


def test_the_end(folder, opened):
    with serving(folder) as server:
        page = opened(server)
        for prompt in (1, 2):
            page.press("1", "2")
            page.wait_for("#prompt", f"a cat {prompt}")

        page.press("n")

        page.wait_for(".finished", "All prompts are voted on.")
        page.press("u")
        page.wait_for("#prompt", "a cat 2")


def test_all_samples_are_in_sight_on_a_desk(folder, opened):
    with serving(folder) as server:
        page = opened(server)

        widths = page.tab.locator(".sample img").evaluate_all("all => all.map(i => i.naturalWidth)")
        assert widths == [24] * 8
        assert page.tab.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_clicks_on_a_phone(folder, opened):
    with serving(folder) as server:
        page = opened(server, size=PHONE)
        assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        lefts = page.tab.locator(".sample").evaluate_all("all => all.map(i => i.offsetLeft)")
        assert len(set(lefts)) == 2

        page.tab.get_by_label("Sample 8").first.click()
        page.tab.get_by_label("Sample 1").first.click()
        page.wait_for("#prompt", "a cat 1")
        page.tab.locator("#none").click()
        page.wait_for("#prompt", "a cat 2")

        order = server.sessions["ann"].order(0)
        assert votes(folder)[0] == (order[7], order[0])


def test_help_and_enlarging(folder, opened):
    with serving(folder) as server:
        page = opened(server)

        page.press("?")
        page.wait_for("#keys", "How to vote")
        page.press("1", "2")  # not behind the help
        page.press("Escape", "z", "ArrowRight")
        page.wait_for("#which", "Sample 2")
        page.press("2", "z")

        assert page.text("#step") == "Now pick the worst"
        assert not page.tab.locator("#large").is_visible()


def test_clips_play(tmp_path, opened):
    folder = make_samples(tmp_path / "samples", prompts=1, kind="clip")
    with serving(folder) as server:
        page = opened(server)

        playing = "v => v.readyState > 2 && !v.paused"
        for i in range(4):
            page.tab.wait_for_function(
                f"i => ({playing})(document.querySelectorAll('video')[i])", arg=i
            )


def test_answers_are_text(tmp_path, opened):
    folder = make_samples(tmp_path / "samples", prompts=1, kind="text", name="<b>why</b>")
    answer = '<img src="x" onerror="document.title = 1">'
    for file in (folder / "media").iterdir():
        file.write_text(answer, encoding="utf-8")
    with serving(folder) as server:
        page = opened(server)

        assert page.text("#prompt") == "<b>why</b> 0"
        assert page.text(".sample p") == answer
        assert page.tab.title() == "Votes of ann"
