"""The page at / as people use it: in headless Chromium, over a tiny decoder."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from support.browser import Page, chromium
from support.serving import data_url, make_service, png, running, wait_until

from emu3_megatron.serving.bounds import Bounds

pytestmark = pytest.mark.slow

PHONE = {"width": 360, "height": 740}
LONG = 3000  # tokens: a picture of LARGE fits, and takes seconds
TIMES = "\N{MULTIPLICATION SIGN}"
LARGE = ("400", "400")
UNAUTHORIZED = "Failed to load resource: the server responded with a status of 401 (Unauthorized)"

# Keeps what the page makes URLs of, and counts the rows that the picture shows whenever it changes.
WATCH = """
window.blobs = [];
window.rows = [];
const make = URL.createObjectURL;
URL.createObjectURL = (blob) => { blobs.push(blob); return make.call(URL, blob); };
addEventListener("DOMContentLoaded", () => {
  const picture = document.getElementById("picture");
  picture.addEventListener("load", () => {
    const [w, h] = [picture.naturalWidth, picture.naturalHeight];
    const brush = Object.assign(document.createElement("canvas"), { width: w, height: h })
      .getContext("2d");
    brush.drawImage(picture, 0, 0);
    const { data } = brush.getImageData(0, 0, w, h);
    const row = (y) => data.slice(4 * w * y, 4 * w * (y + 1));
    const isDrawn = (y) => row(y).some((v, i) => i % 4 < 3 && v != 128);
    rows.push([...Array(h).keys()].filter(isDrawn).length);
  });
});
"""
BLOBS = """() => Promise.all(blobs.map(async (blob) =>
  btoa(String.fromCharCode(...new Uint8Array(await blob.arrayBuffer())))))"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def service(decoder, tokenizer):
    return make_service(decoder, tokenizer, Bounds(pixels=2000), context=LONG)


@pytest.fixture(scope="module")
def client(service):
    with running(service) as client:
        yield client


@pytest.fixture
def opened(browser):
    """A function that opens the page of a server; it ends with the test, without errors."""
    pages = []

    def open_page(client, **options):
        pages.append(Page(browser, str(client.base_url.join("/")), **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def fill(page, prompt="a cat", seed="", size=None):
    page.tab.fill("#prompt", prompt)
    page.tab.fill("#seed", seed)
    if size:
        page.tab.select_option("#size", "other")
        page.tab.fill("#width", size[0])
        page.tab.fill("#height", size[1])


def draw(page, **wanted):
    """Draw a picture to its end."""
    images = page.tab.locator("#gallery li").count()
    fill(page, **wanted)
    page.tab.click("#drawing .start")
    page.tab.locator("#gallery li").nth(images).wait_for()


def begin(page):
    """Begin a picture that takes seconds, and wait for its first rows."""
    fill(page, size=LARGE)
    page.tab.click("#drawing .start")
    page.wait_for("#caption", "of 50")


def downloaded(page):
    with page.tab.expect_download() as download:
        page.tab.locator("#gallery a").first.click()
    return download.value.path().read_bytes()


def test_the_image_appears_row_by_row_and_its_last_preview_is_the_png(client, opened):
    page = opened(client, before=WATCH)

    draw(page, seed="5", size=("128", "160"))

    page.tab.wait_for_function("() => rows.at(-1) === 160")
    rows = page.tab.evaluate("() => rows")
    assert len(set(rows)) > 3
    assert rows == sorted(rows)
    assert all(count % 8 == 0 for count in rows)
    *previews, whole, kept = map(base64.b64decode, page.tab.evaluate(BLOBS))
    assert len(previews) == 20
    body = {"prompt": "a cat", "seed": 5, "size": "128x160"}
    answer = client.post("/v1/images/generations", json=body).json()
    drawn = base64.b64decode(answer["data"][0]["b64_json"])
    assert previews[-1] == whole == kept == drawn == downloaded(page)
    assert np.asarray(Image.open(io.BytesIO(drawn))).shape == (160, 128, 3)


@pytest.fixture
def steps(service, monkeypatch):
    """Numbers of steps that the generator took between a request's end and the next look."""
    generator, engine = service.engine.worker.generator, service.engine
    count, since = [0], []
    step, forget = generator.step, engine.forget

    def counted_step():
        count[0] += 1
        return step()

    def noted_forget(key):
        since.append(count[0])
        return forget(key)

    monkeypatch.setattr(generator, "step", counted_step)
    monkeypatch.setattr(engine, "forget", noted_forget)
    return lambda: [count[0] - at for at in since]


@pytest.mark.parametrize("how", ["button", "escape", "closed tab"])
def test_a_stop_frees_the_rows_within_a_step(how, client, service, opened, steps):
    generator = service.engine.worker.generator
    page = opened(client)
    begin(page)
    assert generator.num_rows == 2

    if how == "button":
        page.tab.click("#drawing .stop")
    elif how == "escape":
        page.press("Escape")
    else:
        page.tab.close()

    wait_until(steps)
    wait_until(lambda: generator.num_rows == 0)
    assert steps()[0] <= 1
    if how != "closed tab":
        page.wait_for("#caption", "Stopped at row")
        assert page.tab.locator("#gallery li").count() == 0
        assert page.tab.evaluate("() => document.activeElement.textContent") == "Draw"
        draw(page, size=("32", "24"))


def test_the_gallery_keeps_the_images_of_this_visit(client, opened):
    page = opened(client)
    draw(page, prompt="a cat", seed="7")
    draw(page, prompt="<b>a dog</b>")

    first, second = page.tab.locator("#gallery li").all()
    assert "<b>a dog</b>" in first.inner_text()
    assert f"seed 7 · 32 {TIMES} 24 · guidance 3" in second.inner_text()
    with page.tab.expect_request("**/generations") as request:
        second.get_by_text("Another seed").click()
    assert request.value.post_data_json.items() >= {"prompt": "a cat", "size": "32x24"}.items()
    page.tab.locator("#gallery li").nth(2).wait_for()
    assert "a cat" in page.text("#gallery li")
    assert "seed 7 " not in page.text("#gallery li")

    page.tab.get_by_label("Show: <b>a dog</b>").click()
    page.wait_for("#caption", "<b>a dog</b>")
    page.tab.get_by_text("Ask about it").first.click()
    page.tab.locator("#shown").wait_for()
    assert page.tab.locator("#draw").is_hidden()


def answered(page, question):
    """Ask, and return the messages that the page sent."""
    bubbles = page.tab.locator(".said.model[aria-busy=false]")
    before = bubbles.count()
    page.tab.fill("#question", question)
    with page.tab.expect_request("**/completions") as request:
        page.press("Enter")
    bubbles.nth(before).wait_for()
    return request.value.post_data_json["messages"]


def seeded(route):
    body = {**route.request.post_data_json, "seed": 5, "max_tokens": 30}
    route.continue_(post_data=json.dumps(body))


def test_questions_about_an_image(client, opened, tmp_path):
    (tmp_path / "cat.png").write_bytes(png())
    page = opened(client)
    page.tab.click("#ask-tab")
    page.tab.fill("#question", "too early")
    page.press("Enter")
    page.wait_for("#trouble", "Choose an image first")

    page.tab.set_input_files("#file", tmp_path / "cat.png")
    page.wait_for("#about", f"16 {TIMES} 16")
    page.tab.route("**/completions", seeded)
    messages = answered(page, "what is it?")
    image = {"type": "image_url", "image_url": {"url": data_url(png())}}
    assert messages[0]["content"] == [image, {"type": "text", "text": "what is it?"}]
    body = {"messages": messages, "seed": 5, "max_tokens": 30}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    said = choice["message"]["content"]
    assert said
    assert page.tab.locator(".said.model").text_content().startswith(said)

    messages = answered(page, "and now?")
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == said
    page.tab.click("#anew")
    assert page.tab.locator(".said").count() == 0


def test_an_image_that_is_too_large_is_scaled(client, opened, tmp_path):
    (tmp_path / "cat.png").write_bytes(png(100, 50))
    page = opened(client)
    page.tab.click("#ask-tab")

    page.tab.set_input_files("#file", tmp_path / "cat.png")

    page.wait_for("#about", f"100 {TIMES} 50, scaled to 63 {TIMES} 31")
    messages = answered(page, "what is it?")
    url = messages[0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (63, 31)


def test_a_file_that_is_no_image(client, opened, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"miaow")
    page = opened(client)
    page.tab.click("#ask-tab")

    page.tab.set_input_files("#file", tmp_path / "cat.png")

    page.wait_for("#trouble", "cannot read the file as an image")


def test_by_keyboard_alone(client, opened):
    page = opened(client)
    focused = "() => document.activeElement.id || document.activeElement.textContent"
    ring = "() => getComputedStyle(document.activeElement).outlineStyle"
    order = []
    for _ in range(7):
        page.press("Tab")
        order.append(page.tab.evaluate(focused))
        assert page.tab.evaluate(ring) == "solid", order[-1]
    assert order == ["draw-tab", "prompt", "Negative prompt", "size", "seed", "guidance", "Draw"]

    page.press(*["Shift+Tab"] * 5)
    page.tab.keyboard.type("a cat")
    page.press("Shift+Enter")
    page.tab.keyboard.type("in snow")
    page.press("Enter")
    page.tab.locator("#gallery li").wait_for()
    assert page.text("#caption b") == "a cat\nin snow"
    assert "The image is finished. Seed" in page.text("#said")
    page.press("Tab", "Tab", "Tab", "Tab", "Control+Enter")  # from a field that is no text area
    page.tab.locator("#gallery li").nth(1).wait_for()

    page.press(*["Shift+Tab"] * 5, "ArrowRight", "Tab")
    assert page.tab.evaluate(focused) == "file"
    page.press("Tab")
    assert page.tab.evaluate(focused) == "question"


def test_on_a_phone_nothing_is_wider_than_the_window(client, opened, tmp_path):
    (tmp_path / "cat.png").write_bytes(png(60, 30))
    page = opened(client, size=PHONE)
    width = "() => document.documentElement.scrollWidth"
    draw(page, prompt="x" * 200, size=("128", "24"))
    assert page.tab.locator("#picture").bounding_box()["width"] > 200
    assert page.tab.evaluate(width) == 360

    page.tab.click("#ask-tab")
    page.tab.set_input_files("#file", tmp_path / "cat.png")
    answered(page, "y" * 200)
    assert page.tab.evaluate(width) == 360


def test_a_key_is_asked_for_and_kept_in_this_tab(decoder, tokenizer, opened):
    with running(make_service(decoder, tokenizer, key="secret")) as client:
        page = opened(client)
        page.wait_for("#key-dialog", "The server asks for a key")
        page.tab.fill("#key", "wrong")
        page.press("Enter")
        page.wait_for("#key-why", "does not take the key")
        page.tab.fill("#key", "secret")
        page.press("Enter")
        page.wait_for("#model", "tiny")
        draw(page)
        page.tab.reload()
        page.wait_for("#model", "tiny")
        assert page.tab.evaluate("() => [Object.values(sessionStorage), localStorage.length]") == [
            *(["secret"], 0)
        ]

        page.tab.click("#forget")
        fill(page)
        page.tab.click("#drawing .start")
        page.wait_for("#key-dialog", "The server asks for a key")
        page.press("Escape")
        page.wait_for("#trouble", "Without its key the server takes no calls.")
        assert page.errors == [UNAUTHORIZED] * 3
        page.errors.clear()


def test_refusals_in_plain_words(decoder, tokenizer, opened):
    bounds = Bounds(queue=0)
    with running(make_service(decoder, tokenizer, bounds, rows=2, context=LONG)) as client:
        busy, page = opened(client), opened(client)
        fill(page, size=("8000", "8000"))
        page.tab.click("#drawing .start")
        page.wait_for("#trouble", "Too much for the model")
        begin(busy)
        page.tab.select_option("#size", "32x24")
        page.tab.click("#drawing .start")
        page.wait_for("#trouble", "The server is busy. Try again in 5 seconds.")
        busy.tab.click("#drawing .stop")
        draw(page)
        assert page.tab.locator("#trouble").is_hidden()
        assert len(page.errors) == 2
        page.errors.clear()


def test_an_engine_that_fails_and_a_server_that_is_gone(decoder, tokenizer, opened, monkeypatch):
    service = make_service(decoder, tokenizer, context=LONG)
    with running(service) as client:
        page = opened(client)
        begin(page)
        fail = lambda: 1 / 0
        monkeypatch.setattr(service.engine.worker.generator, "step", fail)
        page.wait_for("#trouble", "The model has failed. The server must be restarted.")
        page.wait_for("#caption", "Failed at row")
    page.tab.click("#drawing .start")
    page.wait_for("#trouble", "The server does not answer.")
    page.errors.clear()
