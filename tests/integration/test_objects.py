"""The object store against a real S3 server."""

import hashlib
import secrets
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import Conflict, InvalidInput, NotFound, Unavailable
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings


@pytest.fixture
def settings(s3_settings: S3Settings) -> S3Settings:
    return s3_settings


@pytest.fixture
def store(settings: S3Settings) -> ObjectStore:
    made = ObjectStore(settings)
    made.ensure_buckets()
    return made


def _key() -> str:
    return f"tests/{secrets.token_hex(8)}"


def test_buckets_are_made_once_for_each_modality(settings: S3Settings) -> None:
    fresh = settings.model_copy(update={"bucket_prefix": f"t{secrets.token_hex(4)}-"})
    store = ObjectStore(fresh)
    without = store.ensure_buckets()
    assert store.ensure_buckets() == without
    for modality in Modality:
        assert list(store.list(store.bucket(modality))) == []
    # Weights never expire; that the others do is the store's to say.
    assert store.bucket(Modality.MODEL) not in without


def test_a_file_comes_back_as_it_was(store: ObjectStore, tmp_path: Path) -> None:
    data = secrets.token_bytes(3 << 20)
    source = tmp_path / "source"
    source.write_bytes(data)
    uri = store.put_file(store.bucket(Modality.MODEL), _key(), source, metadata={"made-by": "test"})
    stat = store.stat(uri)
    assert stat.size_bytes == len(data)
    assert stat.metadata["made-by"] == "test"
    seen: list[int] = []
    digest = hashlib.sha256(data).hexdigest()
    target = tmp_path / "deep" / "target"
    assert store.get_to_file(uri, target, sha256=f"sha256:{digest}", progress=seen.append) == digest
    assert target.read_bytes() == data
    assert seen[-1] == len(data)


def test_a_large_file_goes_in_parts(store: ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "large"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(40):
            block = secrets.token_bytes(1 << 20)
            digest.update(block)
            file.write(block)
    uri = store.put_file(store.bucket(Modality.MODEL), _key(), source)
    assert store.get_to_file(uri, tmp_path / "back") == digest.hexdigest()


def test_other_bytes_than_the_checksum_never_appear(store: ObjectStore, tmp_path: Path) -> None:
    uri = store.put_bytes(store.bucket(Modality.MODEL), _key(), b"changed")
    with pytest.raises(Conflict, match="expected sha256:00"):
        store.get_to_file(uri, tmp_path / "target", sha256="00" * 32)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    missing = f"s3://{store.bucket(Modality.MODEL)}/{_key()}"
    for call in (store.stat, store.get_bytes, lambda uri: store.get_to_file(uri, tmp_path / "x")):
        with pytest.raises(NotFound):
            call(missing)
    with pytest.raises(NotFound):
        store.stat(f"s3://nothing-{secrets.token_hex(4)}/key")
    store.delete(missing)
    assert list(tmp_path.iterdir()) == []


def test_delete_copy_and_list(store: ObjectStore) -> None:
    bucket, folder = store.bucket(Modality.TEXT), _key()
    first = store.put_bytes(bucket, f"{folder}/ä b", b"x", "text/plain")
    second = store.copy(first, bucket, f"{folder}/second")
    assert store.get_bytes(second) == b"x"
    assert {str(uri) for uri in store.list(bucket, f"{folder}/")} == {first, second}
    store.delete(first)
    assert [str(uri) for uri in store.list(bucket, f"{folder}/")] == [second]
    with pytest.raises(InvalidInput):
        store.get_bytes(second, max_bytes=0)


def test_a_presigned_url_needs_no_credentials(store: ObjectStore) -> None:
    uri = store.put_bytes(store.bucket(Modality.IMAGE), _key(), b"\x89PNG", "image/png")
    url = store.presign_get(uri, 60, filename='a"b\r\n.png')
    answer = httpx.get(url)
    assert (answer.status_code, answer.content) == (200, b"\x89PNG")
    assert answer.headers["content-type"] == "image/png"
    assert httpx.get(url.partition("?")[0]).status_code == 403
    assert httpx.get(url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000")).status_code == 403


def test_a_presigned_url_is_for_the_public_endpoint(settings: S3Settings) -> None:
    public = settings.model_copy(update={"public_endpoint": "https://files.example.com"})
    store = ObjectStore(public)
    url = store.presign_get(f"s3://{store.bucket(Modality.IMAGE)}/a.png", 60)
    assert url.startswith(f"https://files.example.com/{store.bucket(Modality.IMAGE)}/a.png?")
    # The same signature, sent to where that name would lead, is accepted for that host.
    private = ObjectStore(settings)
    private.ensure_buckets()
    private.put_bytes(private.bucket(Modality.IMAGE), "a.png", b"x")
    there = url.replace("https://files.example.com", settings.endpoint)
    assert httpx.get(there, headers={"Host": "files.example.com"}).status_code == 200


def test_presigning_takes_a_week_at_most(store: ObjectStore) -> None:
    with pytest.raises(InvalidInput):
        store.presign_get(f"s3://{store.bucket(Modality.IMAGE)}/a.png", 8 * 86400)


def test_a_store_that_is_away_or_refuses(settings: S3Settings) -> None:
    away = ObjectStore(settings.model_copy(update={"endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9 does not answer"):
        away.stat(f"s3://{away.bucket(Modality.IMAGE)}/a")
    wrong = ObjectStore(settings.model_copy(update={"secret_key": SecretStr("wrong-key")}))
    with pytest.raises(Unavailable):
        wrong.put_bytes(wrong.bucket(Modality.IMAGE), "a", b"x")
    with pytest.raises(InvalidInput, match="endpoint"):
        ObjectStore(settings.model_copy(update={"endpoint": "127.0.0.1:9000"}))
