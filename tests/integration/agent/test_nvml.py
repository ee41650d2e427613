"""GPUs by NVML: the real binding on a library that the test compiles, and on none."""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from control_plane import ControlPlane

from vyvo_dagster.agent.gpus import GpuBooking
from vyvo_dagster.errors import RunnerFailed
from vyvo_dagster.protocol.node import Gpu, GpuMetrics

GIB = 1 << 30
FIRST = {"index": 0, "uuid": "GPU-00000000-aaaa-bbbb-cccc-000000000000", "name": "NVIDIA Stub A",
         "memory_bytes": 80 * GIB, "lost": None}  # fmt: skip
SECOND = {"index": 1, "uuid": "GPU-00000001-aaaa-bbbb-cccc-000000000000", "name": "NVIDIA Stub B",
          "memory_bytes": 24 * GIB, "lost": None}  # fmt: skip
READ = [
    {"index": 0, "memory_used_bytes": GIB, "memory_total_bytes": 80 * GIB,
     "utilization_ratio": 0.42, "temperature_celsius": 61.0, "lost": None},
    {"index": 1, "memory_used_bytes": 2 * GIB, "memory_total_bytes": 24 * GIB,
     "utilization_ratio": 0.05, "temperature_celsius": 62.0, "lost": None},
]  # fmt: skip
GONE = {"index": 1, "memory_used_bytes": 0, "memory_total_bytes": 0, "utilization_ratio": 0.0,
        "temperature_celsius": None, "lost": "GPU is lost"}  # fmt: skip
SCRIPT = """\
import json, os, pathlib, sys
from vyvo_dagster.agent.nvml import Nvml
knobs, nvml = pathlib.Path(os.environ["VYVO_TEST_NVML"]), None
for text in json.loads(sys.argv[1]):
    knobs.write_text(text)
    nvml = nvml or Nvml()
    print(json.dumps([nvml.driver(), [g.model_dump() for g in nvml.gpus()],
                      [m.model_dump() for m in nvml.metrics()]]))
nvml.close()
nvml.close()
assert nvml.gpus() == [] and nvml.metrics() == [] and nvml.driver() is None
"""


def readings(folder: Path, tmp_path: Path, knobs: Sequence[str]) -> list[Any]:
    """What one process reads as the library's knobs change."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(list(knobs))],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder),
             "VYVO_TEST_NVML": str(tmp_path / "knobs")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_gpus_are_read_whole(nvml_folder: Path, tmp_path: Path) -> None:
    assert readings(nvml_folder, tmp_path, [""]) == [["570.86.15", [FIRST, SECOND], READ]]


def test_a_gpu_that_falls_off_the_bus_is_told_and_so_is_its_return(
    nvml_folder: Path, tmp_path: Path
) -> None:
    lost = {**SECOND, "lost": "GPU is lost"}
    steps = readings(nvml_folder, tmp_path, ["", "1=15", "count=1\n1=15", ""])
    whole, with_loss = (
        ["570.86.15", [FIRST, SECOND], READ],
        ["570.86.15", [FIRST, lost], [READ[0], GONE]],
    )
    assert steps == [whole, with_loss, with_loss, whole]


def test_a_gpu_that_was_lost_from_the_start_keeps_its_place(
    nvml_folder: Path, tmp_path: Path
) -> None:
    unknown = {"index": 0, "uuid": "", "name": "", "memory_bytes": 0, "lost": "GPU is lost"}
    (step,) = readings(nvml_folder, tmp_path, ["0=15"])
    assert step == ["570.86.15", [unknown, SECOND], [{**GONE, "index": 0}, READ[1]]]


def test_what_a_gpu_cannot_tell_is_left_out(nvml_folder: Path, tmp_path: Path) -> None:
    (step,) = readings(nvml_folder, tmp_path, ["memory=3\nutilization=3\ntemperature=3\ndriver=3"])
    blank = {"memory_used_bytes": 0, "memory_total_bytes": 0, "utilization_ratio": 0.0,
             "temperature_celsius": None}  # fmt: skip
    assert step == [
        None, [{**FIRST, "memory_bytes": 0}, {**SECOND, "memory_bytes": 0}],
        [{**READ[0], **blank}, {**READ[1], **blank}],
    ]  # fmt: skip


def test_a_driver_that_is_not_loaded_means_no_gpu(nvml_folder: Path, tmp_path: Path) -> None:
    assert readings(nvml_folder, tmp_path, ["init=9"]) == [[None, [], []]]


def test_a_library_that_cannot_be_loaded_means_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    assert readings(tmp_path, tmp_path, [""]) == [[None, [], []]]


def _has_library() -> bool:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def test_no_library_at_all_means_no_gpu(tmp_path: Path) -> None:
    (found,) = readings(tmp_path, tmp_path, [""])
    # A host with NVIDIA's driver has one, whatever the test sets.
    assert (found == [None, [], []]) is not _has_library()


async def test_the_heartbeat_of_a_real_agent_tells_the_loss_and_the_agent_goes_on(
    plane: ControlPlane, spawn: Callable[..., Any], nvml_folder: Path, tmp_path: Path
) -> None:
    knobs = tmp_path / "knobs"
    knobs.write_text("")
    agent = await spawn(LD_LIBRARY_PATH=str(nvml_folder), VYVO_TEST_NVML=str(knobs))
    await plane.until(lambda: plane.heartbeats)
    told = plane.registered[-1].capabilities
    assert ([gpu.model_dump() for gpu in told.gpus], told.driver) == ([FIRST, SECOND], "570.86.15")

    def last() -> list[dict[str, Any]]:
        return [gpu.model_dump() for gpu in plane.heartbeats[-1].gpus]

    assert last() == READ
    knobs.write_text("1=15")
    await plane.until(lambda: last() == [READ[0], GONE])
    # One that joins again has the loss in what it says of itself.
    plane.refusals["heartbeat"].append((409, "stale_boot"))
    await plane.until(lambda: len(plane.registered) == 2)
    assert [gpu.lost for gpu in plane.registered[-1].capabilities.gpus] == [None, "GPU is lost"]
    knobs.write_text("")
    await plane.until(lambda: last() == READ)
    agent.send_signal(signal.SIGTERM)
    _, said = await agent.communicate()
    assert agent.returncode == 0, said.decode()
    lines = [line.split(": ", 1)[1] for line in said.decode().splitlines() if "GPU 1" in line]
    assert lines == [f"GPU 1 ({SECOND['uuid']}) is lost: GPU is lost", "GPU 1 answers again"]


async def test_an_agent_without_the_library_serves_without_gpus(
    plane: ControlPlane, spawn: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    await spawn(LD_LIBRARY_PATH=str(tmp_path))
    await plane.until(lambda: plane.heartbeats)
    assert (plane.registered[-1].capabilities.gpus, plane.heartbeats[-1].gpus) == ([], [])


def test_nothing_is_booked_on_a_lost_gpu() -> None:
    booking = GpuBooking([Gpu(**FIRST), Gpu(**SECOND)])
    one, two = uuid4(), uuid4()
    assert booking.book(one, 10 * GIB) == SECOND["uuid"]
    booking.note([GpuMetrics(**READ[0]), GpuMetrics(**GONE)])
    assert booking.book(one, 10 * GIB) == FIRST["uuid"]
    booking.note([GpuMetrics(**{**GONE, "index": 0}), GpuMetrics(**GONE)])
    with pytest.raises(RunnerFailed, match="no GPU that answers"):
        booking.book(two, GIB)
    booking.note([GpuMetrics(**reading) for reading in READ])
    assert booking.book(two, GIB) == SECOND["uuid"]
