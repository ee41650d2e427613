"""A real OCI registry that asks who pulls: by a password, or by tokens of a small token server.

Made for tests of what nodes pull with. Both are processes or threads on free loopback ports.
"""

import base64
import json
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

USER, PASSWORD = "puller", "a pull:password"
# bcrypt of PASSWORD: what htpasswd -nbB writes.
_HTPASSWD = "$2y$05$abcdefghijklmnopqrstuuK6bMhyG4ZkHUAE0QJDo6YmmRy0eoPzO"
PROGRAM = shutil.which("docker-registry") or shutil.which("registry")


@dataclass
class PrivateRegistry:
    """A registry at `host`; `asked` are the scopes that tokens were asked for."""

    host: str
    process: subprocess.Popen[bytes] | None = None
    asked: list[str] = field(default_factory=list)

    def stop(self) -> None:
        """The registry is away from now on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@contextmanager
def by_password(folder: Path) -> Iterator[PrivateRegistry]:
    """A registry that knows `USER` and `PASSWORD`."""
    folder.mkdir()
    (folder / "htpasswd").write_text(f"{USER}:{_HTPASSWD}\n")
    auth = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    with _served(folder, auth) as (host, process):
        yield PrivateRegistry(host, process)


@contextmanager
def by_token(folder: Path, seconds: int = 60) -> Iterator[PrivateRegistry]:
    """A registry that takes only tokens, which `USER` gets for `PASSWORD`, each for `seconds`."""
    folder.mkdir()
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "root.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    der = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    registry = PrivateRegistry("")

    class Tokens(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            given = self.headers.get("Authorization", "").removeprefix("Basic ")
            if base64.b64decode(given) != f"{USER}:{PASSWORD}".encode():
                self.send_error(401)
                return
            scope = query.get("scope", [""])[0]
            registry.asked.append(scope)
            kind, _, rest = scope.partition(":")
            repository, _, actions = rest.rpartition(":")
            claims = {
                "iss": "tests", "sub": USER, "aud": query["service"][0], "exp": int(time.time()) + seconds,
                "nbf": int(time.time()) - 5, "iat": int(time.time()), "jti": secrets.token_hex(8),
                "access": [{"type": kind, "name": repository, "actions": actions.split(",")}],
            }  # fmt: skip
            body = json.dumps({"token": _signed(claims, key, der), "expires_in": seconds}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    tokens = ThreadingHTTPServer(("127.0.0.1", 0), Tokens)
    thread = threading.Thread(target=tokens.serve_forever)
    thread.start()
    try:
        realm = f"http://127.0.0.1:{tokens.server_port}/token"
        bundle = str(folder / "root.pem")
        auth = {
            "token": {
                "realm": realm,
                "service": "tests",
                "issuer": "tests",
                "rootcertbundle": bundle,
            }
        }
        with _served(folder, auth) as (host, process):
            registry.host, registry.process = host, process
            yield registry
    finally:
        tokens.shutdown()
        tokens.server_close()
        thread.join()


def _signed(claims: dict[str, Any], key: rsa.RSAPrivateKey, der: str) -> str:
    header = {"alg": "RS256", "typ": "JWT", "x5c": [der]}
    text = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(claims).encode())}"
    return f"{text}.{_encoded(key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def _served(folder: Path, auth: dict[str, Any]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    assert PROGRAM is not None, "these tests need a registry: install docker-registry"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": 0.1, "http": {"addr": host}, "auth": auth, "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
    }  # fmt: skip
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 30
        while not _answers(host):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)
        yield host, process
    finally:
        process.kill()
        process.wait()


def _answers(host: str) -> bool:
    try:
        return httpx.get(f"http://{host}/v2/", trust_env=False).status_code == 401
    except httpx.TransportError:
        return False
