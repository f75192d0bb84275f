"""The HTTP server behind the voting page, for browsers on this machine.

It listens on the loopback address alone. A request is refused when its Host is no name of this
machine (a foreign page whose name was pointed here), when another site's page sent it, and, where
it writes, without the token that the page carries.
"""

import json
import re
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.voting.session import Session
from emu3_megatron.errors import InputError

HOST = "127.0.0.1"
TOKEN_HEADER = "X-Voting-Token"
_HERE = Path(__file__).parent
_OUR_NAMES = {"127.0.0.1", "localhost", "::1"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".mp4": "video/mp4",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_LONGEST_BODY = 4096


class Refused(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class VotingServer(ThreadingHTTPServer):
    """Serves each voter's page at /VOTER.

    Args:
        port: 0 takes a free one.

    Raises:
        InputError: a voter's name cannot be used, or the port is taken.
    """

    daemon_threads = True
    request_queue_size = 128  # a page asks for all samples of a prompt at once

    def __init__(self, samples: Samples, voters: Sequence[str], port: int):
        self.samples = samples
        self.sessions = {voter: Session(samples, voter) for voter in voters}
        self.token = secrets.token_urlsafe(32)
        templates = Environment(
            loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined
        )
        self.template = templates.get_template("page.html")
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise InputError(
                f"--port {port}: {error.strerror}; give another, or 0 for any free one"
            ) from None

    def address(self, voter: str) -> str:
        """Where a voter's page is."""
        return f"http://{HOST}:{self.server_port}/{quote(voter)}"


class _Handler(BaseHTTPRequestHandler):
    server: VotingServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, action: Any) -> None:
        try:
            self._check_host()
            action()
        except Refused as refused:
            self._send_json({"error": str(refused)}, refused.status)
        except InputError as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except ConnectionError:
            pass  # the browser left
        except OSError as error:  # a full disk, say
            self._send_json({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)

    # What is refused

    def _check_host(self) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if host not in _OUR_NAMES:
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for browsers on this machine")

    def _check_same_site(self) -> None:
        """Whether our page asks. Browsers say so in one of two headers."""
        origin = self.headers.get("Origin")
        site = self.headers.get("Sec-Fetch-Site", "same-origin")
        ours = origin in (None, f"http://{self.headers.get('Host')}")
        if not ours or site not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "asked for by another site")

    def _check_token(self) -> None:
        given = self.headers.get(TOKEN_HEADER, "")
        if not secrets.compare_digest(given.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "a page of an earlier start; load it again")

    # What is answered

    def _get(self) -> None:
        match self._path():
            case [voter] if voter in self.server.sessions:
                self._send_page(voter)
            case ["static", name] if name in ("page.css", "page.js"):
                self._check_same_site()
                self._send_file(_HERE / name)
            case [voter, "state"] if voter in self.server.sessions:
                self._check_same_site()
                self._send_json(self.server.sessions[voter].state())
            case [voter, "media", prompt, position] if voter in self.server.sessions:
                self._check_same_site()
                self._send_media(voter, prompt, position)
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self) -> None:
        body = self._body()
        self._check_same_site()
        self._check_token()
        match self._path():
            case [voter, "vote"] if voter in self.server.sessions:
                session = self.server.sessions[voter]
                if body.get("no_difference") is True:
                    session.no_difference(body.get("prompt"))
                else:
                    session.vote(body.get("prompt"), body.get("best"), body.get("worst"))
                self._send_json(session.state())
            case [voter, "undo"] if voter in self.server.sessions:
                session = self.server.sessions[voter]
                self._send_json(session.state(session.undo()))
            case _:
                raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _path(self) -> list[str]:
        return [unquote(word) for word in urlsplit(self.path).path.split("/")[1:]]

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _LONGEST_BODY:
            raise Refused(HTTPStatus.BAD_REQUEST, "a body of JSON, and of a length, is needed")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "a body of JSON is needed")
        return body

    def _send_page(self, voter: str) -> None:
        page = self.server.template.render(voter=voter, token=self.server.token)
        self._send(page.encode(), ".html")

    def _send_media(self, voter: str, prompt: str, position: str) -> None:
        if not (prompt.isdecimal() and position.isdecimal()):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such sample")
        try:
            media = self.server.sessions[voter].media(int(prompt), int(position))
        except IndexError:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such sample") from None
        self._send_file(self.server.samples.folder / media)

    def _send_file(self, path: Path) -> None:
        """A file, or the part of it that is asked for, as players of clips do."""
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or int(asked[1]) >= len(content):
            self._send(content, path.suffix)
            return
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        part = content[first : last + 1]
        self._send(part, path.suffix, HTTPStatus.PARTIAL_CONTENT, place)

    def _send_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), ".json", status)

    def _send(
        self,
        content: bytes,
        suffix: str,
        status: HTTPStatus = HTTPStatus.OK,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        common = {"Content-Type": _TYPES[suffix], "Content-Length": str(len(content))}
        for name, value in {**_HEADERS, **common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
