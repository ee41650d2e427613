"""A proxy before the real registry that answers the first so many requests of a kind with 500."""

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import httpx


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("transfer-encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("content-length") or 0))
    whole = bytearray()  # a layer of a base image comes in thousands of small chunks
    while size := int(request.rfile.readline().partition(b";")[0], 16):
        whole += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return bytes(whole)


class FailingRegistry:
    """Answers 500 to the first `failures` requests whose method and path match `what`.

    Args:
        upstream: the real registry, host:port.
        what: pattern of `METHOD path`.
        failures: how many of them.
    """

    def __init__(self, upstream: str, what: str, failures: int) -> None:
        self.failed = self.passed = 0
        lock = Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = _body(self)
                if re.match(what, f"{self.command} {self.path}"):
                    with lock:
                        fail = outer.failed < failures
                        outer.failed += fail
                        outer.passed += not fail
                    if fail:
                        self.send_error(500)
                        return
                # The Host goes along: the registry's Location headers are to lead here.
                drop = {"connection", "transfer-encoding", "content-length"}
                # A list: there are several Accept headers.
                headers = [(k, v) for k, v in self.headers.items() if k.lower() not in drop]
                answer = client.request(
                    self.command, f"http://{upstream}{self.path}", content=body, headers=headers
                )
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in drop:
                        self.send_header(name, value)
                length = answer.headers.get("content-length", "0")
                size = length if self.command == "HEAD" else str(len(answer.content))
                self.send_header("content-length", size)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        for method in ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        client = httpx.Client(trust_env=False, timeout=60)
        self._client = client
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()
