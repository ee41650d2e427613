"""Weights by hf://, by Hugging Face's own client against a server that speaks the hub's API."""

import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from vyvo_dagster.building.hub import Hub
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.building.weights import copy_weights
from vyvo_dagster.errors import BuildFailed
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings

TOKEN = "hf_test_token"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "model.safetensors": bytes(range(256)) * 100_000,
    "sub/tokenizer.json": b"{}",
}


@dataclass
class Server:
    """A hub with the gated repository `team/model`, and what it was asked."""

    url: str = ""
    asked: list[str] = field(default_factory=list[str])
    break_after: int | None = None
    errors: int = 0
    odd_name: str | None = None


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Server

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        ranged = self.headers.get("Range", "")
        self.hub.asked.append(f"{self.command} {path} {ranged}".strip())
        if self.hub.errors:
            self.hub.errors -= 1
            self._answer(503, b"busy", {}, body)
            return
        if "team/model" not in path:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            headers = {
                "X-Error-Code": "GatedRepo",
                "X-Error-Message": "Access to team/model is restricted",
            }
            self._answer(401, b"", headers, body)
            return
        if path.startswith("/api/models/team/model"):
            if path.count("/") > 4 and path.rsplit("/", 1)[-1] not in {"main", "v1", COMMIT}:
                self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
                return
            names = [*FILES, *([self.hub.odd_name] if self.hub.odd_name else [])]
            siblings = [{"rfilename": name} for name in names]
            found = {"id": "team/model", "modelId": "team/model", "sha": COMMIT, "siblings": siblings,
                     "private": True, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
            if "/tree/" in path:
                found = [{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                         for n, d in {**dict.fromkeys(names, b"x"), **FILES}.items()]  # fmt: skip
            self._answer(
                200, json.dumps(found).encode(), {"Content-Type": "application/json"}, body
            )
            return
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name not in FILES:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._answer(404, b"", headers, body)
            return
        self._file(FILES[name], ranged, body)

    def _file(self, data: bytes, ranged: str, body: bool) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                   "Accept-Ranges": "bytes"}  # fmt: skip
        status = 200
        if ranged:
            start = int(ranged.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        cut = self.hub.break_after
        if body and cut is not None and len(data) > cut:
            self.hub.break_after = None
            self.send_response(status)
            for each, value in headers.items():
                self.send_header(each, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:cut])
            self.close_connection = True
            return
        self._answer(status, data, headers, body)

    def _answer(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        return


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, step: str, text: str, fields: object = None) -> None:
        self.lines.append(f"{step}: {text}")


@pytest.fixture
def server() -> Iterator[Server]:
    hub = Server()
    httpd = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub})
    )
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    hub.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield hub
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def store(s3_settings: S3Settings) -> ObjectStore:
    return ObjectStore(s3_settings)


def hub_of(server: Server, token: str | None = TOKEN) -> Hub:
    return Hub(server.url, SecretStr(token) if token else None, seconds=60.0)


def test_one_file_of_a_gated_repository(server: Server, store: ObjectStore, tmp_path: Path) -> None:
    log = Lines()
    uri = "hf://team/model@v1/model.safetensors"
    record = copy_weights(uri, store, tmp_path, log, hub=hub_of(server), wait=0.01)
    data = FILES["model.safetensors"]
    assert record.sha256 == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert store.get_bytes(record.url) == data
    assert record.path.read_bytes() == data
    assert f"weights: hf://team/model is at commit {COMMIT}" in log.lines
    # The token is nowhere but in the requests.
    assert TOKEN not in "\n".join(log.lines)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert not list((tmp_path / "incoming").glob("*.hub"))


def test_a_whole_repository_is_one_tar_whose_bytes_follow_from_its_files(
    server: Server, store: ObjectStore, tmp_path: Path
) -> None:
    first = copy_weights("hf://team/model", store, tmp_path / "a", Lines(), hub=hub_of(server))
    second = copy_weights("hf://team/model@v1", store, tmp_path / "b", Lines(), hub=hub_of(server))
    assert first.sha256 == second.sha256
    with tarfile.open(fileobj=io.BytesIO(store.get_bytes(first.url))) as tar:
        found = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert found == FILES


@pytest.mark.parametrize(
    ("uri", "token", "said"),
    [
        ("hf://team/none/x.bin", TOKEN, "RepositoryNotFound"),
        ("hf://team/model/none.bin", TOKEN, "EntryNotFound"),
        ("hf://team/model@gone/model.safetensors", TOKEN, "RevisionNotFound"),
        ("hf://team/model/model.safetensors", None, "GatedRepo|restricted|401"),
    ],
)
def test_what_cannot_be_had_is_said_once(
    server: Server, store: ObjectStore, tmp_path: Path, uri: str, token: str | None, said: str
) -> None:
    with pytest.raises(BuildFailed, match=rf"^weights: hf://team/\w+: .*({said})"):
        copy_weights(uri, store, tmp_path, Lines(), hub=hub_of(server, token), wait=0.01)
    assert len(server.asked) <= 3


def test_a_transfer_that_breaks_off_goes_on(
    server: Server, store: ObjectStore, tmp_path: Path
) -> None:
    # The client writes pieces of 10 MB.
    server.break_after = 22_000_000
    log = Lines()
    uri = "hf://team/model/model.safetensors"
    record = copy_weights(uri, store, tmp_path, log, hub=hub_of(server), wait=0.01)
    assert record.sha256 == f"sha256:{hashlib.sha256(FILES['model.safetensors']).hexdigest()}"
    assert any(" bytes=" in line and "bytes=0-" not in line for line in server.asked), server.asked


def test_a_cancel_stops_the_client(server: Server, store: ObjectStore, tmp_path: Path) -> None:
    def canceled() -> None:
        if server.asked:
            raise BuildCanceled("the build was canceled")

    with pytest.raises(BuildCanceled):
        copy_weights(
            "hf://team/model", store, tmp_path, Lines(), hub=hub_of(server), check=canceled
        )
    assert not list((tmp_path / "sha256").iterdir())


@pytest.mark.parametrize("name", ["../../evil.bin", "/etc/evil", "a/../../b", "a\\..\\b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    server: Server, store: ObjectStore, tmp_path: Path, name: str
) -> None:
    server.odd_name = name
    with pytest.raises(BuildFailed, match=r"the file name .* is not taken"):
        copy_weights("hf://team/model", store, tmp_path, Lines(), hub=hub_of(server), wait=0.01)
    assert not any("evil" in path.name for path in tmp_path.parent.rglob("evil*"))
