"""What a node says of itself, what it books, and what its runners are told."""

import socket
from uuid import uuid4

import pytest

from vyvo_dagster.agent.capabilities import detect, memory_available_bytes, node_name
from vyvo_dagster.agent.gpus import GpuBooking
from vyvo_dagster.agent.join import Session
from vyvo_dagster.agent.nvml import Nvml
from vyvo_dagster.agent.reconcile import on_loopback, runner_env
from vyvo_dagster.agent.runners.base import RunnerSpec, log_text
from vyvo_dagster.errors import InvalidInput, RunnerFailed
from vyvo_dagster.protocol.node import DesiredAssignment, Gpu, S3Access

GIB = 1 << 30


def s3(endpoint: str) -> S3Access:
    return S3Access(
        endpoint=endpoint, access_key="a", secret_key="s", region="r", bucket_prefix="v-"
    )


def test_a_host_without_nvml_has_no_gpus_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    nvml = Nvml()
    found = detect(nvml, None)
    assert found.gpus == []
    assert found.driver is None
    assert nvml.metrics() == []
    assert found.engine == "process"
    assert found.hostname == socket.gethostname()
    assert found.cpus >= 1
    assert 0 < memory_available_bytes() <= found.memory_bytes
    nvml.close()


def test_an_engine_is_named_with_its_version() -> None:
    found = detect(Nvml(), "20.10.24")
    assert (found.engine, found.engine_version) == ("docker", "20.10.24")


def test_node_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_name("gpu-01") == "gpu-01"
    monkeypatch.setattr(socket, "gethostname", lambda: "-my host_!.")
    assert node_name(None) == "my-host"
    with pytest.raises(InvalidInput, match="node name"):
        node_name("no such/name")


class TestGpuBooking:
    def gpus(self, *sizes: int) -> GpuBooking:
        return GpuBooking(
            [Gpu(index=i, uuid=f"GPU-{i}", name="x", memory_bytes=s) for i, s in enumerate(sizes)]
        )

    def test_the_fullest_gpu_with_room_is_taken(self) -> None:
        gpus = self.gpus(80 * GIB, 24 * GIB)
        assert gpus.book(uuid4(), 16 * GIB) == "GPU-1"
        assert gpus.book(uuid4(), 16 * GIB) == "GPU-0"
        assert gpus.book(uuid4(), 8 * GIB) == "GPU-1"

    def test_a_repeat_gets_the_same_and_a_release_gives_back(self) -> None:
        gpus, one, other = self.gpus(24 * GIB), uuid4(), uuid4()
        assert gpus.book(one, 20 * GIB) == gpus.book(one, 20 * GIB) == "GPU-0"
        with pytest.raises(RunnerFailed, match=f"{4 * GIB} left"):
            gpus.book(other, 20 * GIB)
        gpus.release(one)
        assert gpus.book(other, 20 * GIB) == "GPU-0"

    def test_without_need_or_without_gpu(self) -> None:
        assert self.gpus().book(uuid4(), 0) is None
        with pytest.raises(RunnerFailed, match="no GPU"):
            self.gpus().book(uuid4(), 1)


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("http://127.0.0.1:9000", True), ("http://localhost:9000", True), ("http://[::1]:9000", True),
        ("https://minio.internal", False), ("http://10.0.0.7:9000", False),
    ],
)  # fmt: skip
def test_host_networking_follows_the_object_store(endpoint: str, local: bool) -> None:
    assert on_loopback(s3(endpoint)) is local


def test_a_version_cannot_say_what_the_node_says() -> None:
    desired = DesiredAssignment(
        assignment_id=uuid4(), model_id="a/b", version="1", runner_image="x",
        env={"GREETING": "hi", "VYVO_MODEL_ID": "other/model"},
    )  # fmt: skip
    session = Session(uuid4(), uuid4(), "redis://x", s3("http://h:1"), 60, 1.0)
    env = runner_env(desired, session)
    assert env["GREETING"] == "hi"
    assert env["VYVO_MODEL_ID"] == "a/b"
    assert env["VYVO_S3_BUCKET_PREFIX"] == "v-"
    assert env["VYVO_ARTIFACT_TTL_SECONDS"] == "60"


def test_equal_specs_are_found_again_and_others_are_not() -> None:
    known = uuid4()
    one, same = (
        RunnerSpec(known, "image", {"A": "1", "B": "2"}),
        RunnerSpec(known, "image", {"B": "2", "A": "1"}),
    )
    assert one.digest == same.digest
    assert one.digest != RunnerSpec(known, "image", {"A": "1"}).digest


def test_logs_of_coglet_become_their_messages() -> None:
    raw = b'rest of a line"},"target":"coglet::prediction"}\n'
    raw += b'{"fields":{"message":"Starting prediction"},"target":"coglet::prediction"}\n'
    raw += b'{"level":"INFO","fields":{"message":"setup failed"},"target":"x"}\nplain line\n\n{"odd": 1}\n'
    assert log_text(raw) == 'setup failed\nplain line\n{"odd": 1}'
