"""The digits model end to end: trained for real, sampled by the runner's code, served by Cog.

Weights are trained once with a quarter of the usual epochs and kept by the hash of the code that
makes them, so that a second run of the tests trains nothing.
"""

import hashlib
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from minio import Minio
from numpy.typing import NDArray
from PIL import Image
from sklearn.svm import SVC

from runner_images import SDK_DIR, TEMPLATES_DIR
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.training import digits, network

TEMPLATE = TEMPLATES_DIR / "digits-diffusion"
EPOCHS = 100
PER_DIGIT = 20
WANTED = 0.95
READY_SECONDS = 60


@pytest.fixture(scope="session")
def weights() -> Path:
    """The trained weights file."""
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (digits, network))
    key = hashlib.sha256(code + f"{EPOCHS}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"vyvo-digits-{os.getuid()}-{key}" / "digits.npz"
    if not path.is_file():
        result = digits.train(digits.TrainConfig(epochs=EPOCHS))
        own = path.with_name(f"{os.getpid()}.npz")
        digits.save_weights(result, own)
        own.replace(path)
    return path


@pytest.fixture(scope="session")
def predictor() -> Iterator[ModuleType]:
    """The template's `predict` module, as the runner imports it."""
    sys.path.insert(0, str(TEMPLATE))
    spec = importlib.util.spec_from_file_location("digits_predict", TEMPLATE / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TEMPLATE))


def samples_in(png: bytes, count: int, scale: int, gap: int = 0) -> NDArray[np.uint8]:
    """The samples (count, 8, 8) in a runner's PNG, exactly."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))[::scale, ::scale]
    cell = 8 + gap
    columns = pixels.shape[1] // cell
    places = [divmod(number, columns) for number in range(count)]
    return np.stack([pixels[r * cell : r * cell + 8, c * cell : c * cell + 8] for r, c in places])


def test_at_least_95_percent_are_the_digit_asked_for(
    weights: Path, predictor: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = digits.load_digits()
    classifier = SVC(gamma="scale", C=10).fit(images, labels)
    model = predictor.sampling.load_model(weights)
    wanted, drawn = np.repeat(np.arange(10), PER_DIGIT), []
    for digit in range(10):
        sheet = predictor.contact_sheet(
            predictor.sampling.sample(model, digit, PER_DIGIT, steps=25, seed=digit)
        )
        drawn.append(samples_in(predictor.encode_png(sheet, 4, {}), PER_DIGIT, 4))
    generated = np.concatenate(drawn).reshape(-1, 64) / 127.5 - 1
    share = float(np.mean(classifier.predict(generated) == wanted))
    spread = np.linalg.norm(generated[:, None] - images[None], axis=2).min(axis=1)
    with capsys.disabled():
        print(f"\ndigits-diffusion: {share:.1%} of {len(wanted)} samples are the digit asked for")
    assert share >= WANTED
    # Not the training images again: the nearest real one differs visibly from most samples.
    assert np.median(spread) > 1.0
    # Control: without its class the model draws any digit, so that the classifier is no rubber stamp.
    anything = np.concatenate(
        [predictor.sampling.sample(model, 10, PER_DIGIT, steps=25, seed=s) for s in range(10)]
    )
    guessed = classifier.predict(anything.reshape(-1, 64) / 127.5 - 1)
    assert np.mean(guessed == wanted) < 0.3
    assert len(set(guessed.tolist())) >= 8


def test_equal_inputs_give_equal_images(weights: Path, predictor: ModuleType) -> None:
    model = predictor.sampling.load_model(weights)
    steps: list[tuple[int, int]] = []
    one = predictor.sampling.sample(
        model, 3, 4, steps=10, seed=7, on_step=lambda done, of: steps.append((done, of))
    )
    same = predictor.sampling.sample(model, 3, 4, steps=10, seed=7)
    other = predictor.sampling.sample(model, 3, 4, steps=10, seed=8)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert steps == [(number, 10) for number in range(1, 11)]
    assert one.dtype == np.uint8
    assert one.shape == (4, 8, 8)


@pytest.mark.parametrize(("count", "scale", "gap"), [(1, 1, 0), (5, 3, 0), (64, 2, 1), (12, 16, 3)])
def test_the_png_holds_the_samples_exactly(
    predictor: ModuleType, count: int, scale: int, gap: int
) -> None:
    images = np.random.default_rng(count).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    png = predictor.encode_png(predictor.contact_sheet(images, gap), scale, {"Comment": "x"})
    assert np.array_equal(samples_in(png, count, scale, gap), images)


def test_training_is_repeatable_and_reports_each_epoch(tmp_path: Path) -> None:
    config = digits.TrainConfig(epochs=2, hidden=32, layers=1, time_steps=20, seed=5)
    seen: list[tuple[int, int]] = []
    first = digits.train(config, lambda epoch, of, loss: seen.append((epoch, of)))
    second = digits.train(config)
    assert seen == [(1, 2), (2, 2)]
    assert first.losses == second.losses
    checksum = digits.save_weights(first, tmp_path / "a.npz")
    assert checksum == "sha256:" + hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    # Equal bytes, so that a repeated training run is the same artifact by its checksum.
    assert digits.save_weights(second, tmp_path / "b.npz") == checksum


def test_the_gradient_is_the_loss_slope() -> None:
    rng = np.random.default_rng(0)
    parameters = network.init_parameters(rng, pixels=6, hidden=8, layers=2, classes=3)
    parameters = {
        name: rng.standard_normal(value.shape) * 0.5 for name, value in parameters.items()
    }
    x, target = rng.standard_normal((5, 6)), rng.standard_normal((5, 6))
    features = rng.standard_normal((5, network.TIME_FEATURES)) * 0.1
    one_hot = np.eye(4)[[0, 1, 2, 3, 1]]
    _, gradient = network.gradients(parameters, x, features, one_hot, target)
    for name, value in parameters.items():
        place = tuple(int(rng.integers(0, size)) for size in value.shape)
        slopes = []
        for step in (1e-5, -1e-5):
            moved = {**parameters, name: value.copy()}
            moved[name][place] += step
            slopes.append(network.gradients(moved, x, features, one_hot, target)[0])
        assert gradient[name][place] == pytest.approx(
            (slopes[0] - slopes[1]) / 2e-5, rel=2e-3, abs=1e-6
        ), name


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an archive at all"])
def test_other_files_are_no_weights(predictor: ModuleType, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="holds no digits model"):
        predictor.sampling.load_model(tmp_path / "x.npz")


def test_weights_of_another_format_are_refused(predictor: ModuleType, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", metadata=np.array(json.dumps({"format": "other/9"})))
    with pytest.raises(ValueError, match=r"format 'other/9'.*reads 'vyvo-digits-diffusion/1'"):
        predictor.sampling.load_model(tmp_path / "x.npz")


@pytest.fixture
def runner(weights: Path, s3_settings: S3Settings, tmp_path: Path) -> Iterator[str]:
    """URL of a Cog server of the template, as a process, with its own bucket prefix."""
    app = tmp_path / "app"
    app.mkdir()
    for path in TEMPLATE.glob("*.py"):
        (app / path.name).write_bytes(path.read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(SDK_DIR / "src"),
        "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
        "PORT": str(port),
        "VYVO_WEIGHTS": str(weights),
        "VYVO_S3_ENDPOINT": s3_settings.endpoint,
        "VYVO_S3_ACCESS_KEY": s3_settings.access_key,
        "VYVO_S3_SECRET_KEY": s3_settings.secret_key.get_secret_value(),
        "VYVO_S3_BUCKET_PREFIX": f"digits-{os.getpid()}-{time.time_ns()}-",
        "VYVO_ARTIFACT_TTL_SECONDS": "3600",
    }
    subprocess.run(
        [sys.executable, "-m", "vyvo_runner.schema"], cwd=app, env=env, check=True, timeout=60
    )
    log = (tmp_path / "runner.log").open("wb")
    argv = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    process = subprocess.Popen(argv, cwd=app, env=env, stdout=log, stderr=log)
    try:
        yield wait_until_ready(f"http://127.0.0.1:{port}", process, tmp_path / "runner.log")
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        log.close()


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return the URL once the server's health check says READY."""
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            status = httpx.get(f"{url}/health-check", timeout=2).json()["status"]
        except httpx.HTTPError:
            status = "STARTING"
        if status == "READY":
            return url
        time.sleep(0.05)
    raise AssertionError(f"the runner did not become ready:\n{log.read_text()[-3000:]}")


def events_of(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    """Events of a server-sent stream: name and data."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def test_a_cog_server_draws_reports_and_uploads(
    runner: str, weights: Path, predictor: ModuleType, s3_settings: S3Settings
) -> None:
    inputs = {"digit": 7, "count": 6, "steps": 12, "seed": 3, "scale": 5}
    body = {"input": inputs, "context": {"prediction_id": "0190-job.2"}}
    headers = {"Accept": "text/event-stream"}
    with httpx.stream(
        "PUT", f"{runner}/predictions/0190-job.2", json=body, headers=headers, timeout=60
    ) as answer:
        assert answer.status_code == httpx.codes.OK
        events = list(events_of(answer))
    progress = [
        data["value"] for name, data in events if name == "metric" and data["name"] == "progress"
    ]
    assert progress == pytest.approx([step / 12 for step in range(1, 13)])
    completed = events[-1][1]
    assert (events[-1][0], completed["status"]) == ("completed", "succeeded")
    (artifact,) = completed["output"]
    assert artifact == {**artifact, "type": "image", "mime_type": "image/png"}
    bucket, _, key = artifact["url"].removeprefix("s3://").partition("/")
    assert bucket.endswith("-image")
    assert key.split("/")[3] == "0190-job.2"

    host = s3_settings.endpoint.partition("://")[2]
    secret = s3_settings.secret_key.get_secret_value()
    client = Minio(host, s3_settings.access_key, secret, secure=False, region=s3_settings.region)
    stored = client.get_object(bucket, key)
    png = stored.read()
    stored.close()
    facts = client.stat_object(bucket, key)
    assert len(png) == artifact["size_bytes"] == facts.size
    assert facts.content_type == "image/png"
    sent = {name.lower(): value for name, value in (facts.metadata or {}).items()}
    assert sent["x-amz-meta-sha256"] == hashlib.sha256(png).hexdigest()
    assert sent["x-amz-meta-expires-at"] == artifact["expires_at"]
    model = predictor.sampling.load_model(weights)
    expected = predictor.sampling.sample(model, 7, 6, steps=12, seed=3)
    assert np.array_equal(samples_in(png, 6, 5), expected)


def test_a_cog_server_refuses_input_that_its_schema_refuses(runner: str) -> None:
    document = httpx.get(f"{runner}/openapi.json", timeout=5).json()
    assert document["components"]["schemas"]["Input"]["required"] == ["digit"]
    for bad in (
        {},
        {"digit": 10},
        {"digit": "7"},
        {"digit": 1, "count": 65},
        {"digit": 1, "scale": 0},
    ):
        answer = httpx.put(f"{runner}/predictions/x", json={"input": bad}, timeout=5)
        assert answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY, bad
