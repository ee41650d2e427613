"""`vyvo_runner.upload` against a real S3 server."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import vyvo_runner
from minio import Minio

from vyvo_dagster.domain.artifact import artifacts_in
from vyvo_dagster.settings import S3Settings

PNG = b"\x89PNG\r\n\x1a\n" + b"pixels"


@pytest.fixture
def client(s3_settings: S3Settings) -> Minio:
    """A client of the test's server that owes the SDK nothing."""
    return Minio(
        s3_settings.endpoint.partition("://")[2],
        s3_settings.access_key,
        s3_settings.secret_key.get_secret_value(),
        region=s3_settings.region,
        secure=s3_settings.endpoint.startswith("https"),
    )


@pytest.fixture
def prefix(s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment of a runner, with buckets that no other test has."""
    prefix = f"sdk-{os.getpid()}-{time.time_ns()}-"
    monkeypatch.setenv("VYVO_S3_ENDPOINT", s3_settings.endpoint)
    monkeypatch.setenv("VYVO_S3_ACCESS_KEY", s3_settings.access_key)
    monkeypatch.setenv("VYVO_S3_SECRET_KEY", s3_settings.secret_key.get_secret_value())
    monkeypatch.setenv("VYVO_S3_REGION", s3_settings.region)
    monkeypatch.setenv("VYVO_S3_BUCKET_PREFIX", prefix)
    monkeypatch.setenv("VYVO_ARTIFACT_TTL_SECONDS", "3600")
    return prefix


@pytest.fixture
def stored(client: Minio) -> Callable[[str], bytes]:
    """Read what an artifact's URL names."""

    def read(url: str) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        answer = client.get_object(bucket, key)
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    return read


def test_bytes_arrive_in_a_bucket_made_for_them(
    prefix: str, stored: Callable[[str], bytes]
) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    artifact = vyvo_runner.upload(PNG)
    assert artifact["url"].startswith(f"s3://{prefix}image/{began:%Y/%m}/")
    assert (artifact["type"], artifact["mime_type"], artifact["size_bytes"]) == (
        "image",
        "image/png",
        14,
    )
    expires_at = datetime.fromisoformat(artifact["expires_at"])
    assert timedelta(hours=1) <= expires_at - began < timedelta(hours=1, minutes=1)
    assert stored(artifact["url"]) == PNG
    # The platform finds it in a runner's answer at any depth.
    assert list(artifacts_in({"images": [artifact]})) == [artifact]


def test_the_same_output_again_is_the_same_object(prefix: str) -> None:
    assert vyvo_runner.upload(PNG)["url"] == vyvo_runner.upload(PNG)["url"]
    assert vyvo_runner.upload(PNG + b".")["url"] != vyvo_runner.upload(PNG)["url"]


def test_each_modality_has_its_bucket(prefix: str) -> None:
    texts = {
        "text": vyvo_runner.upload("grüße".encode()),
        "audio": vyvo_runner.upload(b"fLaC\0\0"),
        "video": vyvo_runner.upload(b"\0\0\0\x20ftypisom"),
        "model": vyvo_runner.upload(b"\0\1\2", "model", filename="lora.safetensors"),
    }
    for modality, artifact in texts.items():
        assert artifact["type"] == modality
        assert artifact["url"].startswith(f"s3://{prefix}{modality}/")
    assert texts["model"]["url"].endswith("-lora.safetensors")


def test_a_large_file_is_sent_in_parts_and_arrives_whole(
    prefix: str, tmp_path: Path, stored: Callable[[str], bytes]
) -> None:
    path = tmp_path / "film"
    content = b"\0\0\0\x20ftypisom" + os.urandom(1024) * (35 * 1024)
    path.write_bytes(content)
    artifact = vyvo_runner.upload(path, filename="film.mp4")
    assert (artifact["mime_type"], artifact["size_bytes"]) == ("video/mp4", len(content))
    assert hashlib.sha256(stored(artifact["url"])).digest() == hashlib.sha256(content).digest()


def test_an_empty_output_is_an_output(prefix: str, stored: Callable[[str], bytes]) -> None:
    assert stored(vyvo_runner.upload(b"", "text")["url"]) == b""


def test_runners_that_make_a_bucket_at_once_all_succeed(prefix: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        urls = set(threads.map(lambda n: vyvo_runner.upload(b"fLaC%d" % n)["url"], range(8)))
    assert len(urls) == 8


def test_a_wrong_key_is_said_in_one_line(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VYVO_S3_SECRET_KEY", "wrong-secret-of-the-test")
    with pytest.raises(
        vyvo_runner.UploadError, match=f"cannot store the output at .*{prefix}"
    ) as error:
        vyvo_runner.upload(PNG)
    assert "\n" not in str(error.value)
    assert "wrong-secret" not in str(error.value)


def test_a_server_that_is_not_there_is_given_up_on(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("VYVO_S3_ENDPOINT", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    with pytest.raises(vyvo_runner.UploadError, match=f"127.0.0.1:{port}"):
        vyvo_runner.upload(PNG)
    assert time.monotonic() - began < 15


def test_a_runner_with_pydantic_1_uploads_too(prefix: str, tmp_path: Path) -> None:
    """Models pin what they were made with; the SDK takes either."""
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--target", str(tmp_path)]
    subprocess.run([*uv, "pydantic>=1.10,<2"], check=True, timeout=180, capture_output=True)
    code = (
        "import json, pydantic, vyvo_runner\n"
        "assert pydantic.VERSION.startswith('1.'), pydantic.VERSION\n"
        "print(json.dumps(vyvo_runner.upload(b'fLaC\\0\\0')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == vyvo_runner.upload(b"fLaC\0\0") | {"expires_at": told["expires_at"]}
    assert told["expires_at"].endswith("Z")
