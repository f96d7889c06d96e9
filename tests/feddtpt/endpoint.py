"""An OpenAI-compatible server on the loopback that can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Odd:
    """A reply that is no answer.

    Attributes:
        status: of HTTP.
        body: as it is sent; None for a proper completion.
        headers: further ones.
        delay: seconds before it.
    """

    status: int = 200
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


class Endpoint:
    """What the server does, and what it was sent."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self.function = function
        self.odd: dict[int, Odd] = {}  # by number of the request
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.url, self.reason = "", "stop"
        self.present = self.most = 0
        self._mutex = threading.Lock()

    def misbehave(self, odd: Sequence[Odd]) -> None:
        """Do this in the next requests."""
        self.odd = dict(enumerate(odd, start=len(self.requests)))

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers["Content-Length"])
        request = json.loads(handler.rfile.read(size))
        with self._mutex:
            odd = self.odd.get(len(self.requests), Odd())
            self.requests.append(request | {"path": handler.path})
            self.keys.append(handler.headers.get("Authorization", ""))
            self.present += 1
            self.most = max(self.most, self.present)
        time.sleep(odd.delay)
        with self._mutex:
            self.present -= 1
        text = request["messages"][-1]["content"]
        body = odd.body
        if body is None:
            body = completion(self.function(text), reason=self.reason)
        handler.send_response(odd.status)
        for name, value in odd.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body.encode())))
        handler.end_headers()
        handler.wfile.write(body.encode())


def completion(text: str | None, tokens: object = 5, reason: str = "stop") -> str:
    """The body of a proper answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return json.dumps({"choices": [choice], "usage": {"total_tokens": tokens}})


@contextmanager
def serve(function: Callable[[str], str]) -> Iterator[Endpoint]:
    """Run it on a free port."""
    endpoint = Endpoint(function)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked may not have waited
                endpoint.handle(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
