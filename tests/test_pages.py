"""Building blocks of reports: what a browser is given."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from emu3_megatron import pages

RED = Image.new("RGB", (6, 4), "red")
BLUE = Image.new("RGB", (6, 4), "blue")
VOID = {"meta", "img", "br"}


class Nesting(HTMLParser):
    """Fails at a tag that closes another one than the last opened; `opened` at the end is []."""

    def __init__(self, html):
        super().__init__()
        self.opened, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.opened.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.text += data


def embedded(html):
    """The picture in an <img>."""
    (data,) = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_page_closes_what_it_opens_and_loads_nothing():
    blocks = [
        pages.heading("Section"),
        pages.paragraph("words"),
        pages.table(["a", "b"], [["1", pages.image(RED)], ["2", "3"]]),
        pages.side_by_side([pages.card([pages.image(RED), pages.paragraph("x")], ["y", "z"])]),
        pages.curve("loss", [(1, 2.0), (2, 1.0)], "step"),
        pages.histogram("lengths", [1, 2, 2]),
        pages.animation([RED, BLUE], fps=4),
    ]

    html = pages.page("Report", blocks)

    assert Nesting(html).opened == []
    assert html.startswith("<!doctype html>")
    assert "<title>Report</title>" in html
    assert "<h1>Report</h1>" in html
    assert not re.search(r'(src|href)="(?!data:)', html)


@pytest.mark.parametrize(
    "make",
    [
        lambda text: pages.page(text, []),
        pages.heading,
        pages.paragraph,
        lambda text: pages.table([text], [[text]]),
        lambda text: pages.card([], [text]),
        lambda text: pages.curve(text, [(1, 1.0)], "step"),
        lambda text: pages.curve(text, [], "step"),
        lambda text: pages.histogram(text, [1.0]),
        lambda text: pages.side_by_side([text]),
    ],
)
def test_text_is_escaped(make):
    html = make("<script>&")

    assert "<script>" not in html
    assert "&lt;script&gt;&amp;" in html


def test_a_table_has_a_head_where_one_is_given():
    rows = [["1", "2"]]

    assert pages.table(["a", "b"], rows).count("<th>") == 2
    assert "<th>" not in pages.table([], rows)
    assert pages.table(["a", "b"], []) == ""


def test_an_image_is_embedded():
    png, jpeg = pages.image(RED), pages.image(RED, "JPEG")

    assert embedded(png).tobytes() == RED.tobytes()
    assert embedded(jpeg).format == "JPEG"
    assert 'width="6" height="4"' in png


def test_an_animation_keeps_its_frames_and_their_rate():
    gif = embedded(pages.animation([RED, BLUE, RED], fps=8))

    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 3, 0)
    assert gif.info["duration"] == pytest.approx(1000 / 8, abs=10)  # GIF counts hundredths


def line_of(html):
    (points,) = re.findall(r'points="([^"]+)"', html)
    return [tuple(map(float, point.split(","))) for point in points.split()]


def test_a_curve_goes_from_corner_to_corner():
    html = pages.curve("loss", [(100, 5.0), (200, 2.0), (300, 1.0)], "step")

    (left, top), (middle, low), (right, bottom) = line_of(html)
    assert (left, top) == (0, 0)
    assert middle == pytest.approx(right / 2, abs=0.1)
    assert low == pytest.approx(bottom * 3 / 4, abs=0.1)
    assert Nesting(html).text == "loss: 5 → 1" + "5" + "1" + "100" + "step 300"


def test_a_curve_leaves_out_what_is_no_number():
    assert len(line_of(pages.curve("loss", [(1, 2.0), (2, float("nan")), (3, 1.0)], "step"))) == 2
    assert "nothing to draw" in pages.curve("loss", [(1, float("inf"))], "step")


def test_a_curve_of_one_value_is_flat():
    assert {y for _, y in line_of(pages.curve("loss", [(1, 2.0), (2, 2.0)], "step"))} == {140.0}


def heights(html):
    return [float(h) for h in re.findall(r'class="bar" [^>]*height="([\d.]+)"', html)]


def test_bars_of_a_histogram_are_as_high_as_their_counts():
    html = pages.histogram("lengths", np.array([1, 2, 2, 2, 2, 3]))

    low, high, same = (height for height in heights(html) if height)
    assert low == same == pytest.approx(high / 4)
    assert Nesting(html).text == "lengths" + "4" + "0" + "1" + "3"


@pytest.mark.parametrize("values", [[2.5], [2.5] * 7])
def test_equal_values_are_one_bar(values):
    assert len(heights(pages.histogram("scores", values))) == 1


def test_a_histogram_leaves_out_what_is_no_number():
    assert "nothing to draw" in pages.histogram("scores", [float("nan")])
    assert len(heights(pages.histogram("scores", [1.0, float("nan")]))) == 1
