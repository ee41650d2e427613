"""How the diffusion template reads weights that it does not trust."""

import importlib.util
import io
import json
import struct
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import vyvo_runner

from runner_images import TEMPLATES_DIR


@pytest.fixture(scope="module")
def archive() -> ModuleType:
    """The template's own module, which needs no torch."""
    path = TEMPLATES_DIR / "diffusion" / "archive.py"
    spec = importlib.util.spec_from_file_location("diffusion_archive", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, link, 0o4777
    member.size = 3 if kind == tarfile.REGTYPE else 0
    return member


def test_files_and_folders_come_out_without_their_modes(tmp_path: Path) -> None:
    source = tar_of(tmp_path / "w", entry("m", tarfile.DIRTYPE), entry("m/unet/a"), entry("b"))
    folder = tmp_path / "out"
    folder.mkdir()
    vyvo_runner.unpack(source, folder)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "b",
        "m/unet/a",
    ]
    assert (folder / "b").read_bytes() == b"xxx"
    assert (folder / "b").stat().st_mode & 0o7111 == 0


@pytest.mark.parametrize(
    "member",
    [
        entry("../out2"),
        entry("/etc/vyvo"),
        entry("a/../../b"),
        entry("link", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard", tarfile.LNKTYPE, "b"),
        entry("pipe", tarfile.FIFOTYPE),
        entry("device", tarfile.CHRTYPE),
    ],
    ids=lambda member: member.name,
)
def test_nothing_else_of_a_tar_is_unpacked(tmp_path: Path, member: tarfile.TarInfo) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(ValueError, match="refusing"):
        vyvo_runner.unpack(tar_of(tmp_path / "w", member), folder)
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "w"]


def test_the_tensors_of_a_safetensors_file_are_read_from_its_header(
    archive: ModuleType, tmp_path: Path
) -> None:
    header = json.dumps({"__metadata__": {}, "a.weight": {}, "b.bias": {}}).encode()
    path = tmp_path / "w"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    assert archive.safetensors_names(path) == {"a.weight", "b.bias"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\0" * 8,
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 4) + b"\x80\x04..",
    ],
)
def test_other_files_are_refused(archive: ModuleType, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ValueError, match="neither a tar nor a safetensors file"):
        archive.safetensors_names(tmp_path / "w")


def test_weights_of_several_files_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    given = {"VYVO_WEIGHTS": str(tmp_path / "folder")}
    assert vyvo_runner.weights_folder(given) == tmp_path / "folder"
    for name, members in {"flat": [entry("a"), entry("b")], "nested": [entry("m/a")]}.items():
        tar_of(tmp_path / name, *members)
        folder = vyvo_runner.weights_folder({"VYVO_WEIGHTS": str(tmp_path / name)})
        assert (folder / "a").read_bytes() == b"xxx"
    for name, members in {"bad": [entry("../x")], "none": None}.items():
        tar_of(tmp_path / name, *members) if members else (tmp_path / name).write_bytes(b"x")
        with pytest.raises(vyvo_runner.WeightsError):
            vyvo_runner.weights_folder({"VYVO_WEIGHTS": str(tmp_path / name)})
