"""The runner SDK without a server: content kinds, settings, weights, progress, object keys."""

import ast
import json
import math
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import vyvo_runner
from vyvo_runner import prediction
from vyvo_runner.media import MODALITIES, OCTET_STREAM, extension_of, modality_of, sniff
from vyvo_runner.object_key import object_key
from vyvo_runner.settings import StorageSettings
from vyvo_runner.upload import _Content, _modality

import vyvo_dagster
from api.artifacts.schemas import ArtifactView
from runner_images import SDK_DIR
from vyvo_dagster.client.models import Artifact as ClientArtifact
from vyvo_dagster.domain.artifact import ARTIFACT_FIELDS, ArtifactShape, artifacts_in
from vyvo_dagster.protocol.artifact import Artifact
from vyvo_dagster.protocol.job import ReportedArtifact

ENVIRONMENT = {
    "VYVO_S3_ENDPOINT": "http://127.0.0.1:9000",
    "VYVO_S3_ACCESS_KEY": "key",
    "VYVO_S3_SECRET_KEY": "secret-of-the-test",
}


@pytest.mark.parametrize(
    ("head", "mime_type"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"GIF89a\x01\0", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0", "video/mp4"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video/mp4"),
        (b"\0\0\0\x20ftypmp42", "video/mp4"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "video/quicktime"),
        (b"\0\0\0\x14ftypM4A \0\0\0\0M4A ", "audio/mp4"),
        (b"\0\0\0\x14ftypavif\0\0\0\0avif", "image/avif"),
        (b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\x82\x84webm", "video/webm"),
        (b"\x1a\x45\xdf\xa3\xa3\x42\x82\x88matroska", "video/x-matroska"),
        (b"ID3\x04\0", "audio/mpeg"),
        (b"\xff\xfb\x90\x64\0", "audio/mpeg"),
        (b"fLaC\0\0\0\x22", "audio/flac"),
        (b"OggS\0\x02", "audio/ogg"),
        (b'{"a": [1, 2]}', "application/json"),
        (b"[1]", "application/json"),
        (b"{not json}", "text/plain"),
        ("grüße\n".encode(), "text/plain"),
        (b"\xff\xfe\xfd", OCTET_STREAM),
        (b"PK\x03\x04\0\0", "application/zip"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"BM is no bitmap but how a text begins", "text/plain"),
        (b"<script>alert(1)</script>", "text/plain"),
        (b"[" * 100_000, "text/plain"),
        (b"\0" * 16, OCTET_STREAM),
        (b"", OCTET_STREAM),
    ],
)
def test_the_kind_is_told_from_the_content(head: bytes, mime_type: str) -> None:
    assert sniff(head, complete=True) == mime_type


def test_a_character_cut_at_the_end_of_the_head_is_still_text() -> None:
    assert sniff("naïve é".encode()[:-1]) == "text/plain"
    assert sniff("naïve é".encode()[:-1], complete=True) == OCTET_STREAM


def test_every_known_type_has_a_modality_and_an_extension() -> None:
    for mime_type in ("image/png", "video/webm", "audio/flac", "text/plain", "application/json"):
        assert modality_of(mime_type) in MODALITIES
        assert extension_of(mime_type) != ".bin"
    assert modality_of("application/zip") == modality_of(OCTET_STREAM) == "text"


def test_settings_come_from_the_environment() -> None:
    settings = StorageSettings.from_env({**ENVIRONMENT, "VYVO_ARTIFACT_TTL_SECONDS": "60"})
    assert (settings.endpoint, settings.secure, settings.ttl_seconds) == (
        "127.0.0.1:9000",
        False,
        60,
    )
    assert StorageSettings.from_env(
        {**ENVIRONMENT, "VYVO_S3_ENDPOINT": "https://s3.example"}
    ).secure
    assert "secret-of-the-test" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VYVO_S3_ENDPOINT", ""),
        ("VYVO_S3_ENDPOINT", "127.0.0.1:9000"),
        ("VYVO_S3_ENDPOINT", "ftp://host"),
        ("VYVO_S3_ENDPOINT", "http://host/bucket"),
        ("VYVO_S3_SECRET_KEY", ""),
        ("VYVO_S3_BUCKET_PREFIX", "Not_A_Bucket/"),
        ("VYVO_ARTIFACT_TTL_SECONDS", "soon"),
        ("VYVO_ARTIFACT_TTL_SECONDS", "0"),
        ("VYVO_ARTIFACT_TTL_SECONDS", "²"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(vyvo_runner.SettingsError, match=name):
        StorageSettings.from_env({**ENVIRONMENT, name: value})


def test_weights_are_where_the_environment_says(tmp_path: Path) -> None:
    weights = tmp_path / "model.npz"
    weights.write_bytes(b"x")
    assert vyvo_runner.weights_path({"VYVO_WEIGHTS": str(weights)}) == weights
    with pytest.raises(vyvo_runner.WeightsError, match="not set"):
        vyvo_runner.weights_path({})
    with pytest.raises(vyvo_runner.WeightsError, match="nothing is there"):
        vyvo_runner.weights_path({"VYVO_WEIGHTS": str(tmp_path / "other")})


class RecordingScope:
    """Cog's scope as far as the SDK uses it, which exists only inside a running prediction."""

    def __init__(self, context: dict[str, str] | None = None) -> None:
        self.metrics: list[tuple[str, Any]] = []
        self.context = context or {}

    def record_metric(self, name: str, value: Any) -> None:
        self.metrics.append((name, value))


def test_progress_goes_out_as_a_metric_and_small_steps_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope = RecordingScope()
    monkeypatch.setattr(prediction, "_scope", lambda: scope)
    for prediction_number in range(2):
        for step in range(1, 10_001):
            vyvo_runner.progress(step / 10_000)
        values = [value for name, value in scope.metrics if name == "progress"]
        assert len(values) <= 201 * (prediction_number + 1)
        assert values[-1] == 1.0
    vyvo_runner.progress(7)
    vyvo_runner.progress(-1)
    assert [value for _, value in scope.metrics[-2:]] == [1.0, 0.0]
    with pytest.raises(ValueError, match="0 to 1"):
        vyvo_runner.progress(math.nan)


def test_outside_a_prediction_progress_does_nothing() -> None:
    vyvo_runner.progress(0.5)
    assert vyvo_runner.prediction_id() is None


def content(data: bytes = b"\x89PNG\r\n\x1a\n", mime_type: str = "image/png") -> _Content:
    import hashlib
    import io

    return _Content(io.BytesIO(data), len(data), hashlib.sha256(data).hexdigest(), mime_type)


SHA256 = "ab" * 32


def test_a_key_derives_from_day_prediction_and_content() -> None:
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def key(owner: str, name: str | None = None, sha256: str = SHA256, secret: str = "s") -> str:
        return object_key(secret, now, owner, sha256, ".png", name)

    folder, token = key("0190-job.2").rsplit("/", 1)
    assert folder == "2026/11/24/0190-job.2"
    assert key("0190-job.2") == f"{folder}/{token}"
    stem = token.removesuffix(".png")
    assert len(stem) == 32
    assert key("0190-job.2", "cat.png") == key("0190-job.2", "cat") == f"{folder}/{stem}-cat.png"
    assert key("").startswith("2026/11/24/")
    assert key("").count("/") == 3
    # Neither the job's id nor its content leads to the key; nor does another's.
    others = [key("0190-job.2", secret="t"), key("0190-job.2", sha256="cd" * 32), key("0190-job.3")]
    assert len({stem, *(other.rpartition("/")[2].removesuffix(".png") for other in others)}) == 4
    assert SHA256[:8] not in token


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\x", "a/b", "...", "", "x\0y", "é" * 300, "\n"]
)
def test_no_file_name_leads_out_of_its_folder(name: str) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    key = object_key("s", now, "../../other", SHA256, ".png", name)
    year, month, day, owner, last = key.split("/")
    assert (year, month, day, owner) == ("2026", "01", "02", "other")
    assert len(last) > 32
    assert key.isascii()
    assert key.isprintable()


def test_the_modality_follows_from_the_content_or_is_asked_for() -> None:
    assert _modality(content(), None) == "image"
    assert _modality(content(mime_type=OCTET_STREAM), "model") == "model"
    assert _modality(content(mime_type=OCTET_STREAM), None) == "text"
    with pytest.raises(vyvo_runner.UploadError, match="unknown modality"):
        _modality(content(), "log")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("artifact.py", "protocol/artifact.py"),
        ("media.py", "objects/media.py"),
        ("object_key.py", "objects/object_key.py"),
    ],
)
def test_what_platform_and_sdk_share_is_the_same(theirs: str, ours: str) -> None:
    platform = Path(vyvo_dagster.__file__).parent
    assert (platform / ours).read_text() == (SDK_DIR / "src/vyvo_runner" / theirs).read_text()


def test_an_artifact_is_the_same_to_everyone() -> None:
    moment = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=2)))
    made = vyvo_runner.Artifact(
        type="image", url="s3://vyvo-image/a.png", size_bytes=3, mime_type="image/png",
        expires_at=moment,
    ).as_json()  # fmt: skip
    assert made["expires_at"] == "2026-01-31T10:00:00Z"
    assert list(artifacts_in([made])) == [made]
    assert made.keys() == ARTIFACT_FIELDS == ArtifactShape.__annotations__.keys()
    for model in (Artifact, ReportedArtifact, ArtifactView, ClientArtifact):
        assert model.model_fields.keys() >= ARTIFACT_FIELDS
        assert issubclass(model, Artifact)
    assert ReportedArtifact.model_validate(made).as_json() == made


def test_an_output_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        vyvo_runner.UploadError, match=r"cannot read the output .*No such file"
    ) as caught:
        vyvo_runner.upload(tmp_path / "missing.png")
    assert "\n" not in str(caught.value)


def test_the_package_keeps_to_python_3_8_and_to_its_dependencies() -> None:
    allowed = {"filetype", "minio", "pydantic", "urllib3", "cog", "__future__"}
    standard = set(__import__("sys").stdlib_module_names)
    for path in sorted((SDK_DIR / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            assert {name.partition(".")[0] for name in names} <= allowed | standard, path


def test_all_is_what_the_package_exports() -> None:
    assert sorted(vyvo_runner.__all__) == vyvo_runner.__all__
    for name in vyvo_runner.__all__:
        assert getattr(vyvo_runner, name).__module__.startswith("vyvo_runner")
    json.dumps(vyvo_runner.__all__)
