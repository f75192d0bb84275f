"""Opens a profile of a run in the browser, for `emu3 inspect profile`."""

import sys
import threading
import webbrowser
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

from emu3_megatron.errors import InputError

# Perfetto's page loads what is served from this address alone.
_PORT = 9001
_VIEWER = "https://ui.perfetto.dev"


def show(path: Path, port: int = _PORT, seconds: float = 60) -> None:
    """Serve a trace until Perfetto's page, which shows it in the browser, has loaded it."""
    url = f"{_VIEWER}/#!/?url={quote(f'http://127.0.0.1:{port}/{path.name}')}"
    loaded = threading.Event()
    try:
        server = HTTPServer(("127.0.0.1", port), partial(_Trace, path, loaded))
    except OSError as error:
        raise InputError(
            f"port {port}: {error.strerror}; open {_VIEWER} and drop {path} into it"
        ) from None
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"open {url}", flush=True)
        webbrowser.open_new_tab(url)
        was_loaded = loaded.wait(seconds)
        server.shutdown()
    if not was_loaded:
        print(f"nobody loaded it; open {_VIEWER} and drop {path} into it", file=sys.stderr)


class _Trace(BaseHTTPRequestHandler):
    def __init__(self, path: Path, loaded: threading.Event, *arguments: object):
        self.file, self.loaded = path, loaded
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if self.path != f"/{quote(self.file.name)}":
            self.send_error(404)
            return
        data = self.file.read_bytes()
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", _VIEWER)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.loaded.set()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the command says what matters."""


def write_memory_page(path: Path) -> Path:
    """The page of a memory snapshot, beside it."""
    import pickle

    from torch.cuda._memory_viz import trace_plot

    page = path.with_suffix(".html")
    page.write_text(trace_plot(pickle.loads(path.read_bytes())), encoding="utf-8")
    return page
