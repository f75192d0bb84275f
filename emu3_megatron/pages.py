"""Building blocks of HTML reports: each returns a piece of HTML, `page` puts them together.

A page is one file that needs nothing beside it: images are embedded, charts are SVG. Plain strings
are escaped wherever they go.
"""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

Html = Markup
"""HTML that was made here, and goes into a page as it is."""

Cell = str | Html
"""Text, which is escaped, or HTML."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; padding: 0 1em; max-width: 72em;
  color: #222 }
h2 { margin-top: 2em; border-bottom: 2px solid #1763b6 }
table { border-collapse: collapse }
.table { overflow-x: auto; margin: 1em 0 }
pre { background: #f5f7fa; padding: .7em 1em; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .85em }
th, td { text-align: left; padding: .35em .8em; vertical-align: top; overflow-wrap: break-word }
tr { border-bottom: 1px solid #ddd }
figure { margin: 0 }
figcaption { font-size: .85em; color: #666; overflow-wrap: anywhere }
.row { display: flex; flex-wrap: wrap; gap: 1.5em; margin: 1em 0 }
.row > .card { width: 15em }
.card p { margin: .4em 0; overflow-wrap: anywhere }
.card img { max-width: 100%; height: auto }
.chart figcaption { color: #222; font-weight: 600 }
svg { font-size: 11px; fill: #666; overflow: visible }
@media (max-width: 32em) { .row > .card { width: calc(50% - .75em) } }
svg .frame { fill: #fafafa; stroke: #ddd }
svg .line { fill: none; stroke: #1763b6; stroke-width: 1.8 }
svg .bar { fill: #1763b6 }
"""

_TEMPLATES = {
    "page": """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{ title }}</title>
<style>{{ style }}</style></head>
<body>
<h1>{{ title }}</h1>
{% for block in blocks %}{{ block }}
{% endfor %}</body></html>
""",
    "heading": "<h{{ level }}>{{ text }}</h{{ level }}>",
    "paragraph": "<p>{{ text }}</p>",
    "row": '<div class="row">{% for block in blocks %}{{ block }}{% endfor %}</div>',
    "card": '<figure class="card">{% for block in blocks %}{{ block }}{% endfor %}<figcaption>'
    "{% for line in lines %}{{ line }}{% if not loop.last %}<br>{% endif %}{% endfor %}"
    "</figcaption></figure>",
    "table": '<div class="table"><table>'
    "{% if heads %}<tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>"
    "{% endif %}{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>"
    "{% endfor %}</table></div>",
    "code": "<pre>{{ text }}</pre>",
    "image": '<img src="data:{{ type }};base64,{{ data }}" width="{{ width }}" '
    'height="{{ height }}" alt="">',
    # x and y of the frame's corners are 0, 0 and width, height; labels stand outside.
    "chart": '<figure class="chart"><figcaption>{{ title }}</figcaption>'
    '<svg viewBox="-{{ left }} -8 {{ left + width + 12 }} {{ height + 30 }}" '
    'width="{{ left + width + 12 }}" height="{{ height + 30 }}" '
    'role="img" aria-label="{{ title }}">'
    '<rect width="{{ width }}" height="{{ height }}" class="frame"/>{{ marks }}'
    '<text x="-6" y="10" text-anchor="end">{{ top }}</text>'
    '<text x="-6" y="{{ height }}" text-anchor="end">{{ bottom }}</text>'
    '<text y="{{ height + 16 }}">{{ first }}</text>'
    '<text x="{{ width }}" y="{{ height + 16 }}" text-anchor="end">{{ last }}</text>'
    "</svg></figure>",
    "line": '<polyline class="line" points="{{ points }}"/>',
    "bars": "{% for x, y, width, height in bars %}"
    '<rect class="bar" x="{{ x }}" y="{{ y }}" width="{{ width }}" height="{{ height }}"/>'
    "{% endfor %}",
}
_ENVIRONMENT = Environment(
    loader=DictLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
)
_BARS = 30  # of a histogram
_WIDTH, _HEIGHT, _LEFT = 272, 140, 52  # of a chart's frame, and of the labels at its left


def _render(template: str, **values: Any) -> Html:
    return Markup(_ENVIRONMENT.get_template(template).render(values))


def page(title: str, blocks: Sequence[Html]) -> str:
    """A whole page, with its title as the first heading."""
    return str(_render("page", title=title, style=Markup(_STYLE), blocks=blocks))


def heading(text: str, level: int = 2) -> Html:
    return _render("heading", text=text, level=level)


def paragraph(text: Cell) -> Html:
    return _render("paragraph", text=text)


def side_by_side(blocks: Sequence[Html]) -> Html:
    """Blocks beside one another, in as many lines as it takes."""
    return _render("row", blocks=blocks)


def card(blocks: Sequence[Html], lines: Sequence[str]) -> Html:
    """Blocks one above the other over lines of small print; cards side by side are equally wide."""
    return _render("card", blocks=blocks, lines=lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Html:
    """Rows of cells; without rows, nothing."""
    return _render("table", heads=heads, rows=rows) if rows else Markup()


def code(text: str) -> Html:
    """Commands or files, as one types them; long lines are wrapped."""
    return _render("code", text=text)


def image(picture: Image.Image, kind: Literal["PNG", "JPEG"] = "PNG") -> Html:
    return _embed(picture, kind)


def animation(pictures: Sequence[Image.Image], fps: float) -> Html:
    """A GIF that repeats for ever."""
    first, *rest = pictures
    settings = {"save_all": True, "append_images": rest, "duration": round(1000 / fps), "loop": 0}
    return _embed(first, "GIF", **settings)


def _embed(picture: Image.Image, kind: str, **settings: Any) -> Html:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    data = base64.b64encode(buffer.getvalue()).decode()
    type = f"image/{kind.lower()}"
    return _render("image", type=type, data=data, width=picture.width, height=picture.height)


def curve(title: str, points: Sequence[tuple[float, float]], unit: str) -> Html:
    """A line through points (x, y) in order of x; those whose y is no finite number are left out.

    Args:
        unit: what x counts.
    """
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if not points:
        return paragraph(f"{title}: nothing to draw")
    xs, ys = zip(*points, strict=True)
    places = zip(_scaled(xs, _WIDTH), _scaled(ys, _HEIGHT), strict=True)
    line = _render("line", points=" ".join(f"{x:.1f},{_HEIGHT - y:.1f}" for x, y in places))
    title = f"{title}: {_number(ys[0])} → {_number(ys[-1])}"
    ends = _number(xs[0]), f"{unit} {_number(xs[-1])}"
    return _chart(title, line, _number(max(ys)), _number(min(ys)), *ends)


def _scaled(values: Sequence[float], size: int) -> list[float]:
    """Values moved and stretched to 0..size."""
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1) * size for value in values]


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def histogram(title: str, values: Sequence[float] | np.ndarray) -> Html:
    """How many values fall into each of equal ranges between the least and the greatest."""
    found = np.asarray(values)
    found = found[np.isfinite(found)]
    if not len(found):
        return paragraph(f"{title}: nothing to draw")
    low, high = found.min().item(), found.max().item()
    counts = np.histogram(found, _BARS if low < high else 1)[0].tolist()
    width = min(_WIDTH / len(counts), _WIDTH / 8)
    bars = []
    for number, height in enumerate(count / max(counts) * _HEIGHT for count in counts):
        bars.append([f"{v:.1f}" for v in (number * width, _HEIGHT - height, width - 1, height)])
    last = _number(high) if low < high else ""
    return _chart(title, _render("bars", bars=bars), _number(max(counts)), "0", _number(low), last)


def _chart(title: str, marks: Html, top: str, bottom: str, first: str, last: str) -> Html:
    """Marks in a frame, with what its four edges stand for."""
    values = {"top": top, "bottom": bottom, "first": first, "last": last}
    size = {"width": _WIDTH, "height": _HEIGHT, "left": _LEFT}
    return _render("chart", title=title, marks=marks, **values, **size)
