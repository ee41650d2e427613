"""What a stack under observation has around it: GPUs, and somebody who takes webhooks."""

import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@contextmanager
def listening() -> Generator[str]:
    """A receiver of webhooks, which takes all; its URL."""

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join(30)


def compiled_nvml(home: Path) -> Path:
    """A folder with a libnvidia-ml.so.1 that tells of two GPUs."""
    source = Path(__file__).parents[1] / "integration" / "agent" / "nvml_stub.c"
    folder = home / "nvml"
    folder.mkdir()
    command = ["cc", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, timeout=120, check=True)
    return folder
