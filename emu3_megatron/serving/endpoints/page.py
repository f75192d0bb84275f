"""GET /: a page for people. It needs no key; the calls that it makes do."""

from functools import cache
from pathlib import Path
from string import Template

from emu3_megatron.serving.calls import Call
from emu3_megatron.serving.errors import Refused
from emu3_megatron.serving.outlet import Outlet
from emu3_megatron.serving.service import Service
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR

_FOLDER = Path(__file__).parent.parent / "page"
_TYPES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
}


async def show(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /"""
    bounds = service.bounds
    limits = {"factor": SPATIAL_FACTOR, "pixels": bounds.pixels, "bytes": bounds.body}
    page = Template(_read("page.html").decode()).substitute(limits)
    await outlet.content(page.encode(), "text/html; charset=utf-8", headers=_HEADERS)


async def static(service: Service, call: Call, outlet: Outlet) -> None:
    """GET /static/NAME"""
    name = call.names["name"]
    if name not in _TYPES:
        raise Refused(404, "there is no such file")
    await outlet.content(_read(name), _TYPES[name], headers=_HEADERS)


@cache
def _read(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()
