"""A judge on this machine: an OpenAI-compatible endpoint that replies what a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Reply:
    """What the server sends back: a chat reply with `text`, or `raw` bytes."""

    text: str = "50"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


@dataclass
class JudgeServer:
    """A running server; `answer` maps (path, request) to a Reply, `before` may hold it back."""

    url: str = ""
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    answer: Callable[[str, dict[str, Any]], Reply] = lambda path, request: Reply()
    before: Callable[[], object] = lambda: None
    reply: type[Reply] = Reply


@pytest.fixture
def judge_server() -> Iterator[JudgeServer]:
    """A judge that listens on a free port of this machine until the test ends."""
    state = JudgeServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.before()
            with lock:
                state.requests.append((self.path, body, dict(self.headers)))
                reply = state.answer(self.path, body)
            chat = {"choices": [{"message": {"role": "assistant", "content": reply.text}}]}
            data = json.dumps(chat).encode() if reply.raw is None else reply.raw
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
