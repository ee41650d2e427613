"""Weights into the store: from the store, over https through the gate, or refused."""

import hashlib
import http.server
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vyvo_dagster.building.addresses import public_addresses, stream_public
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.building.weights import Https, copy_weights, local_weights, store_weights
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import BuildFailed, Conflict, InvalidWeightsUri
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings

# Self-signed for weights.test and mirror.test, until 2126; it protects nothing.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBqzCCAVGgAwIBAgIUCkYfg8bCxNpfTvXYsPjF4HzeeAswCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMd2VpZ2h0cy50ZXN0MCAXDTI2MTEyNDA4MjczN1oYDzIxMjYx
MDMxMDgyNzM3WjAXMRUwEwYDVQQDDAx3ZWlnaHRzLnRlc3QwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAATvPSzIrAjVzX8/0achQjTHkkpNFtr+F4KawcYsEbxia/RK
+TYjMw7cDBQzbz44sSMPqf0x5t3GdFXL6ng6Eq5vo3kwdzAdBgNVHQ4EFgQUSZuT
rme7kGHSC4QWg6T8H1uypQYwHwYDVR0jBBgwFoAUSZuTrme7kGHSC4QWg6T8H1uy
pQYwDwYDVR0TAQH/BAUwAwEB/zAkBgNVHREEHTAbggx3ZWlnaHRzLnRlc3SCC21p
cnJvci50ZXN0MAoGCCqGSM49BAMCA0gAMEUCIQCocNM0xpi+1SEd8u1usLyFus9E
rRygC0RAfIGLk8cKrgIgdwFuix1rlCS/IdkUZvm654aSXkI0xCP3zjYlsqSGJwg=
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgp04E9JZ4HIQ55t1X
fh11Xh5BtfznflOwBZd/ElRXYZOhRANCAATvPSzIrAjVzX8/0achQjTHkkpNFtr+
F4KawcYsEbxia/RK+TYjMw7cDBQzbz44sSMPqf0x5t3GdFXL6ng6Eq5v
-----END PRIVATE KEY-----
"""
CONTENT = b"weights " * 100_000


class Quiet:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, step: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        self.lines.append(f"{step}: {text}")


class Handler(http.server.BaseHTTPRequestHandler):
    """A file host with redirects of every sort."""

    hosts: list[str]
    ranges: list[str]

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        port = self.server.server_address[1]
        redirects = {
            "/mirrored": f"https://mirror.test:{port}/w.bin",
            "/to-metadata": "https://169.254.169.254/latest",
            "/to-local": "https://localhost/x",
            "/to-http": f"http://weights.test:{port}/w.bin",
            "/to-file": "file:///etc/passwd",
            "/to-store": "s3://bucket/key",
            "/to-inside": f"https://inside.test:{port}/w.bin",
            "/for-ever": "/for-ever",
            "/relative": "w.bin",
        }
        path = self.path.partition("?")[0]
        if path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[path])
            self.end_headers()
        elif path == "/w.bin":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)
        elif path == "/torn":
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:1000])
        elif path.startswith("/breaking"):
            self._break(path)
        else:
            self.send_error(404)

    def _break(self, path: str) -> None:
        """Gives 300,000 bytes of what is asked for, then closes; `-changing` is another file then."""
        content, tag = CONTENT, '"one"'
        if path.endswith("-changing") and len(self.hosts) > 1:
            content, tag = CONTENT[::-1], '"two"'
        if path.endswith("-weak"):
            tag = 'W/"one"'
        self.ranges.append(self.headers.get("Range", ""))
        start = 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : start + 300_000])

    def log_message(self, format: str, *args: object) -> None:
        return


class Host:
    """Where the file host is, and a way to it that treats it as public."""

    def __init__(self, port: int, pem: Path, hosts: list[str], ranges: list[str]) -> None:
        self.port, self.hosts, self.ranges = port, hosts, ranges
        trust = ssl.create_default_context(cafile=str(pem))
        self.https: Https = partial(stream_public, addresses=self._addresses, verify=trust)

    def url(self, path: str) -> str:
        return f"https://weights.test:{self.port}{path}"

    @staticmethod
    def _addresses(host: str, port: int) -> Sequence[str]:
        if host in {"weights.test", "mirror.test"}:
            return ["127.0.0.1"]
        return public_addresses(host, port, lambda _host, _port: ["10.0.0.7"])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    pem = tmp_path / "tls.pem"
    pem.write_text(CERTIFICATE)
    hosts: list[str] = []
    ranges: list[str] = []
    handler = type("Recording", (Handler,), {"hosts": hosts, "ranges": ranges})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Host(server.server_address[1], pem, hosts, ranges)
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(s3_settings: S3Settings) -> ObjectStore:
    return ObjectStore(s3_settings)


@pytest.fixture
def log() -> Quiet:
    return Quiet()


def _clean(scratch: Path) -> bool:
    return not list(scratch.rglob("*.part*")) and not list(scratch.rglob("*.validator"))


def test_from_the_store_under_the_checksum(store: ObjectStore, tmp_path: Path, log: Quiet) -> None:
    data = secrets.token_bytes(100_000)
    source = store.put_bytes(store.bucket(Modality.MODEL), f"incoming/{secrets.token_hex(8)}", data)
    record = copy_weights(source, store, tmp_path, log)
    digest = hashlib.sha256(data).hexdigest()
    assert record.sha256 == f"sha256:{digest}"
    assert record.size_bytes == len(data)
    assert record.url == f"s3://{store.bucket(Modality.MODEL)}/weights/sha256/{digest}"
    assert store.get_bytes(record.url) == data
    assert record.path.read_bytes() == data
    assert record.path.stat().st_mode & 0o777 == 0o444
    again = copy_weights(record.url, store, tmp_path, log)
    assert again == record
    assert any("already stored" in line for line in log.lines)


def test_stored_weights_whose_bytes_changed_are_refused(
    store: ObjectStore, tmp_path: Path, log: Quiet
) -> None:
    name = secrets.token_hex(32)
    uri = store.put_bytes(store.bucket(Modality.MODEL), f"weights/sha256/{name}", b"other bytes")
    with pytest.raises(Conflict, match="checksum"):
        copy_weights(uri, store, tmp_path, log)
    assert _clean(tmp_path)


def test_weights_that_are_not_there_or_empty(
    store: ObjectStore, tmp_path: Path, log: Quiet
) -> None:
    bucket = store.bucket(Modality.MODEL)
    with pytest.raises(BuildFailed, match="does not exist; upload it first"):
        copy_weights(f"s3://{bucket}/nothing/{secrets.token_hex(8)}", store, tmp_path, log)
    with pytest.raises(BuildFailed, match="empty"):
        copy_weights(
            store.put_bytes(bucket, f"incoming/{secrets.token_hex(8)}", b""), store, tmp_path, log
        )
    assert _clean(tmp_path)


def test_a_local_copy_is_downloaded_once_and_verified(
    store: ObjectStore, tmp_path: Path, log: Quiet
) -> None:
    trained = tmp_path / "trained.npz"
    trained.write_bytes(secrets.token_bytes(5000))
    record = store_weights(trained, store, log)
    path = local_weights(record.url, record.sha256, store, tmp_path / "cache")
    assert path.read_bytes() == trained.read_bytes()
    store.delete(record.url)
    assert local_weights(record.url, record.sha256, store, tmp_path / "cache") == path


@pytest.mark.parametrize("path", ["/w.bin", "/w.bin?signature=s3cr3t", "/mirrored", "/relative"])
def test_over_https(store: ObjectStore, tmp_path: Path, log: Quiet, host: Host, path: str) -> None:
    record = copy_weights(host.url(path), store, tmp_path / "scratch", log, https=host.https)
    assert record.sha256 == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert store.stat(record.url).size_bytes == len(CONTENT)
    # The connection went to an address; the host still heard its own name.
    assert host.hosts[-1] in {f"weights.test:{host.port}", f"mirror.test:{host.port}"}
    assert "s3cr3t" not in "".join(log.lines)


@pytest.mark.parametrize(
    "path", ["/to-metadata", "/to-local", "/to-http", "/to-file", "/to-store", "/to-inside"]
)
def test_a_redirect_leads_nowhere_that_the_uri_could_not(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host, path: str
) -> None:
    with pytest.raises(InvalidWeightsUri):
        copy_weights(host.url(path), store, tmp_path / "scratch", log, https=host.https)
    assert len(host.hosts) == 1
    assert _clean(tmp_path)


@pytest.mark.parametrize(
    ("path", "why"),
    [("/for-ever", "redirects more than 5"), ("/missing", "answered 404"), ("/torn", "again")],
)
def test_a_download_that_fails_says_why(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host, path: str, why: str
) -> None:
    with pytest.raises(BuildFailed, match=why):
        copy_weights(host.url(path), store, tmp_path / "scratch", log, https=host.https, wait=0.01)
    assert not list((tmp_path / "scratch" / "sha256").iterdir())


def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host
) -> None:
    record = copy_weights(host.url("/breaking"), store, tmp_path, log, https=host.https, wait=0.01)
    assert record.sha256 == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
    assert host.ranges == ["", "bytes=300000-", "bytes=600000-"]
    assert _clean(tmp_path)


def test_the_next_build_goes_on_with_what_an_earlier_one_has(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host
) -> None:
    asked = 0

    def canceled_later() -> None:
        nonlocal asked
        asked += bool(host.ranges)
        if asked > 1:
            raise BuildCanceled("the build was canceled")

    with pytest.raises(BuildCanceled):
        copy_weights(
            host.url("/breaking"), store, tmp_path, log, https=host.https, check=canceled_later
        )
    (part,) = (tmp_path / "incoming").glob("*.part")
    have = part.stat().st_size
    assert 0 < have < len(CONTENT)
    record = copy_weights(host.url("/breaking"), store, tmp_path, log, https=host.https, wait=0.01)
    assert host.ranges[1] == f"bytes={have}-"
    assert record.sha256 == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.mark.parametrize("path", ["/breaking-changing", "/breaking-weak"])
def test_bytes_of_two_versions_of_a_file_are_never_joined(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host, path: str
) -> None:
    if path.endswith("-weak"):
        # No strong name, so each try begins anew and none comes to the end.
        with pytest.raises(BuildFailed, match="broke off 5 times"):
            copy_weights(host.url(path), store, tmp_path, log, https=host.https, wait=0.01)
        assert set(host.ranges) == {""}
        return
    record = copy_weights(host.url(path), store, tmp_path, log, https=host.https, wait=0.01)
    assert record.sha256 == f"sha256:{hashlib.sha256(CONTENT[::-1]).hexdigest()}"


def test_a_certificate_of_nobody_is_refused(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host
) -> None:
    untrusting: Https = partial(stream_public, addresses=lambda _host, _port: ["127.0.0.1"])
    with pytest.raises(BuildFailed, match="cannot be reached"):
        copy_weights(host.url("/w.bin"), store, tmp_path, log, https=untrusting, wait=0.01)


def test_a_name_that_resolves_to_the_inside_is_refused() -> None:
    for inside in ("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"):
        with pytest.raises(InvalidWeightsUri, match="not a public address"):
            # One public address beside it does not help.
            public_addresses("weights.example", 443, lambda _h, _p, a=inside: ["8.8.8.8", a])
    assert public_addresses("weights.example", 443, lambda _h, _p: ["8.8.8.8"]) == ["8.8.8.8"]


def test_a_cancel_stops_the_transfer(
    store: ObjectStore, tmp_path: Path, log: Quiet, host: Host
) -> None:
    def canceled() -> None:
        raise BuildCanceled("the build was canceled")

    check: Callable[[], None] = canceled
    with pytest.raises(BuildCanceled):
        copy_weights(
            host.url("/w.bin"), store, tmp_path / "scratch", log, https=host.https, check=check
        )
    assert not list((tmp_path / "scratch" / "sha256").iterdir())
