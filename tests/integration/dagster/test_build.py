"""A build as Dagster runs it: what it leaves in rows, log, object store and asset history."""

import hashlib
import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus, ExecuteInProcessResult

from runner_images import get_template
from tests.integration.dagster.conftest import World
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.streams import keys


def log_of(world: World, url: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in world.objects.store().get_bytes(url).splitlines()]


def end_of_stream(world: World, build_id: object) -> str | None:
    with world.streams.connection() as redis:
        (_, fields) = redis.xrevrange(keys.build_log(str(build_id)), count=1)[0]
    return fields.get("end")


def test_a_build_ends_as_a_ready_version(
    world: World, weights_uri: str, weights_file: Path
) -> None:
    queued = world.add_build(weights_uri)
    result = world.run(queued)
    assert result.success
    build, version = world.build(queued.id), world.version(queued)

    assert (build.state, build.error, build.run_id) == (
        BuildState.SUCCEEDED,
        None,
        result.run_id,
    )
    assert build.image is not None
    assert build.image.startswith("venv://sha256:")
    assert version.state is VersionState.READY
    assert (version.runner_image, version.image_digest) == (build.image, build.image_digest)
    assert version.input_schema is not None
    assert version.input_schema["required"] == ["digit"]

    hexed = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    assert version.weights_sha256 == f"sha256:{hexed}"
    assert version.weights_url == (
        f"s3://{world.objects.bucket_prefix}model/weights/sha256/{hexed}"
    )
    assert version.weights_size_bytes == weights_file.stat().st_size

    assert build.log_url is not None
    lines = log_of(world, build.log_url)
    assert len(lines) == build.log_lines
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert {"weights", "image", "check", "register"} <= {line["step"] for line in lines}
    assert end_of_stream(world, build.id) == "succeeded"


def test_the_materialization_says_what_was_built(world: World, weights_uri: str) -> None:
    queued = world.add_build(weights_uri)
    result = world.run(queued)
    build = world.build(queued.id)
    (image,) = result.asset_materializations_for_node("runner_image")
    told = {name: value.value for name, value in image.metadata.items()}
    assert image.partition == f"{queued.model_id}@{queued.version}"
    assert told["image"] == build.image
    assert told["digest"] == build.image_digest
    assert told["size_bytes"] == build.size_bytes
    assert told["log_url"] == build.log_url
    assert told["backend"] == "venv"
    assert told["lock_sha256"] == build.lock_sha256
    assert isinstance(told["duration_seconds"], float)
    (weights,) = result.asset_materializations_for_node("model_weights")
    assert weights.metadata["sha256"].value == world.version(queued).weights_sha256
    checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert checks == {
        "runner_image_digest_in_registry": True,
        "runner_image_answers_health_check": True,
        "runner_uploads_by_helper": True,
    }


def test_what_a_build_was_made_of_is_kept_with_it(world: World, weights_uri: str) -> None:
    queued = world.add_build(weights_uri)
    result = world.run(queued)
    build, template = world.build(queued.id), get_template("digits-diffusion")
    assert (build.template_hash, build.source_commit, build.base_digest) == (
        template.hash,
        None,
        None,
    )
    store = world.objects.store()
    assert build.lock_url is not None
    lock = store.get_bytes(build.lock_url)
    assert build.lock_sha256 == f"sha256:{hashlib.sha256(lock).hexdigest()}"
    assert build.sbom_url is not None
    sbom = json.loads(store.get_bytes(build.sbom_url))
    assert (sbom["bomFormat"], sbom["specVersion"]) == ("CycloneDX", "1.6")
    runner = sbom["metadata"]["component"]
    assert (runner["name"], runner["version"]) == (queued.model_id, queued.version)
    assert f"sha256:{runner['hashes'][0]['content']}" == build.image_digest
    locked = {line.split("==")[0] for line in lock.decode().splitlines() if line[:1].isalnum()}
    parts = {part["name"]: part for part in sbom["components"]}
    assert locked == parts.keys()
    # Each wheel by the hash that the lock allows it.
    for part in parts.values():
        assert f"sha256:{part['hashes'][0]['content']}" in lock.decode()
        assert part["purl"] == f"pkg:pypi/{part['name']}@{part['version']}"

    again = world.add_build(weights_uri, version="2")
    second = world.run(again)
    assert world.build(again.id).lock_sha256 == build.lock_sha256
    versions = {data_version_of(each) for each in (result, second)}
    assert len(versions) == 1


def data_version_of(result: ExecuteInProcessResult) -> str:
    (image,) = result.asset_materializations_for_node("runner_image")
    assert image.tags is not None
    return image.tags["dagster/data_version"]


def test_a_failed_step_names_itself_and_leaves_a_draft(world: World) -> None:
    missing = f"s3://{world.objects.bucket_prefix}model/nothing"
    queued = world.add_build(missing)
    result = world.run(queued)
    assert not result.success
    build = world.build(queued.id)
    assert build.state is BuildState.FAILED
    assert build.error == (
        f"weights: {missing} does not exist; upload it first or correct weights_uri"
    )
    assert world.version(queued).state is VersionState.DRAFT
    assert build.log_url is not None
    assert log_of(world, build.log_url)[-1]["text"] == f"failed: {build.error}"
    assert end_of_stream(world, build.id) == "failed"
    assert not result.asset_materializations_for_node("runner_image")


def test_a_runner_that_does_not_start_fails_the_check(world: World, tmp_path: Path) -> None:
    s3 = world.objects.store()
    (tmp_path / "bad.npz").write_bytes(b"no weights at all")
    s3.put_file(s3.bucket(Modality.MODEL), "uploads/bad.npz", tmp_path / "bad.npz")
    queued = world.add_build(f"s3://{s3.bucket(Modality.MODEL)}/uploads/bad.npz")
    result = world.run(queued)
    build = world.build(queued.id)
    assert build.state is BuildState.FAILED
    assert build.error is not None
    assert "holds no digits model" in build.error
    checks = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert checks == {"runner_image_answers_health_check": False}
    assert not result.asset_materializations_for_node("runner_image")
    assert world.version(queued).runner_image is None


def test_a_second_run_of_a_build_does_nothing(world: World, weights_uri: str) -> None:
    queued = world.add_build(weights_uri)
    assert world.run(queued).success
    before = world.build(queued.id)
    again = world.run(queued)
    assert not again.success
    assert world.build(queued.id) == before
    assert world.version(queued).state is VersionState.READY
    assert "is succeeded; this run did nothing" in str(again.failure_data_for_node("model_weights"))


def test_a_run_that_another_run_overtook_does_nothing(world: World, weights_uri: str) -> None:
    queued = world.add_build(weights_uri)
    world.begin(queued, "another-run")
    assert not world.run(queued).success
    build = world.build(queued.id)
    assert (build.state, build.run_id) == (BuildState.BUILDING, "another-run")
    assert world.version(queued).state is VersionState.BUILDING


def test_a_cancel_in_the_api_stops_the_build(
    world: World, weights_uri: str, data_dir: Path
) -> None:
    # Nothing cached, so that there are seconds to cancel in.
    for cache in ("wheelhouses", "venvs"):
        shutil.rmtree(data_dir / cache, ignore_errors=True)
    queued = world.add_build(weights_uri)

    def cancel() -> None:
        while world.build(queued.id).lock_sha256 is None:
            if world.build(queued.id).backend_used is not None:
                world.store.call(lambda db: db.builds.move(queued.id, BuildState.CANCELED))
                return
            time.sleep(0.02)

    thread = threading.Thread(target=cancel)
    thread.start()
    result = world.run(queued)
    thread.join()
    build = world.build(queued.id)
    assert build.state is BuildState.CANCELED
    assert world.version(queued).state is VersionState.DRAFT
    assert end_of_stream(world, build.id) == "canceled"
    run = world.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.status is DagsterRunStatus.CANCELED
    assert build.image is None


def test_a_run_from_the_ui_takes_the_newest_build(world: World, weights_uri: str) -> None:
    queued = world.add_build(weights_uri)
    assert world.run(queued, tagged=False).success
    assert world.build(queued.id).state is BuildState.SUCCEEDED


def test_a_run_from_the_ui_builds_a_failed_version_again(world: World, weights_uri: str) -> None:
    queued = world.add_build(f"s3://{world.objects.bucket_prefix}model/late.npz")
    assert not world.run(queued).success
    s3 = world.objects.store()
    s3.copy(weights_uri, s3.bucket(Modality.MODEL), "late.npz")
    assert world.run(queued, tagged=False).success
    assert world.build(queued.id).state is BuildState.FAILED
    version = world.version(queued)
    assert version.state is VersionState.READY
    assert version.build_id != queued.id


@pytest.fixture
def history() -> list[AssetKey]:
    return [AssetKey("model_weights"), AssetKey("runner_image"), AssetKey("model_version")]


def test_all_three_assets_are_in_the_history(
    world: World, weights_uri: str, history: list[AssetKey]
) -> None:
    world.run(world.add_build(weights_uri))
    instance: DagsterInstance = world.instance
    assert all(instance.get_latest_materialization_event(key) for key in history)
