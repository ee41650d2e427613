"""A git server over HTTPS: git's own http-backend as CGI behind a TLS server of this process."""

import http.server
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Self-signed for git.test, localhost and 127.0.0.1, until 2126; it protects nothing.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBvzCCAWSgAwIBAgIUTZXnf9En8WuGZUmSyvagTHR3EOAwCgYIKoZIzj0EAwIw
EzERMA8GA1UEAwwIZ2l0LnRlc3QwIBcNMjYxMTI0MTYxODQzWhgPMjEyNjEwMzEx
NjE4NDNaMBMxETAPBgNVBAMMCGdpdC50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0D
AQcDQgAExC4J/JjEtvRO2clQ8NxirnRPEteKo4IJXNRVpgaHph5kqPWsWlR4pinX
/Fip/zqvkIHy7vfzd0RJwDH+xupsWaOBkzCBkDAdBgNVHQ4EFgQUFO5aQxNG7xLC
CiyiyUT5t7t7gQIwHwYDVR0jBBgwFoAUFO5aQxNG7xLCCiyiyUT5t7t7gQIwDwYD
VR0TAQH/BAUwAwEB/zA9BgNVHREENjA0gghnaXQudGVzdIIJbG9jYWxob3N0ggho
dWIudGVzdIINKi5naXRodWIudGVzdIcEfwAAATAKBggqhkjOPQQDAgNJADBGAiEA
1MgaFjT4+SHcXe3JbWZXOkE9bjtKY7ZSaH1dlUbhiOcCIQC2jh87iFkzvHZao93B
el4jjrxIMW8JZedqAt7m/dKpRQ==
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgIvHYAKcIqpNoxEni
ezSx79pteN+o0aJVAHJGMaf9YOyhRANCAATELgn8mMS29E7ZyVDw3GKudE8S14qj
gglc1FWmBoemHmSo9axaVHimKdf8WKn/Oq+QgfLu9/N3REnAMf7G6mxZ
-----END PRIVATE KEY-----
"""


@dataclass
class GitHost:
    """Repositories under `root`, served at `https://localhost:port/<name>`."""

    root: Path
    ca: Path
    port: int
    requests: list[str] = field(default_factory=list[str])

    @property
    def netloc(self) -> str:
        return f"localhost:{self.port}"

    def url(self, name: str) -> str:
        return f"https://{self.netloc}/{name}"

    def make(self, name: str, files: dict[str, str | bytes]) -> "Repository":
        """A repository of one commit; it is served."""
        work = self.root / f"{name}.work"
        work.mkdir(parents=True)
        repository = Repository(work, self.root / name)
        repository.git("init", "--quiet", "--initial-branch=main")
        repository.commit(files)
        return repository


@dataclass
class Repository:
    work: Path
    served: Path

    def git(self, *argv: str, stdin: bytes | None = None) -> str:
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.work), "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@t",
        }  # fmt: skip
        done = subprocess.run(
            ["git", *argv], cwd=self.work, env=env, input=stdin, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, str | bytes]) -> str:
        """Write files, commit them, serve the result; the commit's id."""
        for name, content in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.git("add", "--all", "--force", ".")
        self.git("commit", "--quiet", "--allow-empty", "-m", "change")
        return self.publish()

    def commit_tree(self, tree: str) -> str:
        """Commit a tree that was made by hand."""
        commit = self.git("commit-tree", tree, "-m", "odd")
        self.git("update-ref", "refs/heads/main", commit)
        return self.publish()

    def blob(self, content: bytes) -> str:
        return self.git("hash-object", "-w", "--stdin", stdin=content)

    def publish(self) -> str:
        # Not cloned: git would refuse to copy some of what the tests make.
        shutil.rmtree(self.served, ignore_errors=True)
        shutil.copytree(self.work / ".git", self.served, symlinks=True)
        (self.served / "git-daemon-export-ok").touch()
        return self.git("rev-parse", "HEAD")


class _Handler(http.server.BaseHTTPRequestHandler):
    host: GitHost

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._serve(body)

    def _serve(self, body: bytes) -> None:
        path, _, query = self.path.partition("?")
        self.host.requests.append(self.path)
        if path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/moved/", "/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path.startswith("/slow/"):
            threading.Event().wait(20)
        env = {
            "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(self.host.root),
            "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
            "GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1": "true",
        }  # fmt: skip
        done = subprocess.run(
            ["git", "http-backend"], env=env, input=body, capture_output=True, check=False
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def tls_server(handler: type[http.server.BaseHTTPRequestHandler], pem: Path) -> Iterator[int]:
    """A TLS server of a handler on loopback, with the certificate above; its port."""
    pem.write_text(CERTIFICATE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def git_host(folder: Path) -> Iterator[GitHost]:
    """A git host with no repositories."""
    root = folder / "repositories"
    root.mkdir()
    host = GitHost(root, folder / "tls.pem", 0)
    with tls_server(type("Bound", (_Handler,), {"host": host}), host.ca) as port:
        host.port = port
        yield host
