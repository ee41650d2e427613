"""A build host whose disk is full: each step says so, and nothing half-made is left to be used.

Collected where a small file system can be mounted, which takes root.
"""

import contextlib
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner_images import SDK_DIR, SHARED_DIR, get_template
from tests.integration.git_https import git_host
from vyvo_dagster.building.recipe import TemplateFiles, lay_out
from vyvo_dagster.building.source import SourceLimits, fetch_source
from vyvo_dagster.building.types import BuildContext, BuildRequest
from vyvo_dagster.building.venv import VenvBackend
from vyvo_dagster.building.weights import copy_weights
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.errors import BuildFailed
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size at a folder."""
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(argv, capture_output=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def can_mount() -> bool:
    folder = Path(f"/tmp/vyvo-mount-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    try:
        with mounted(folder, "1m"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        folder.rmdir()


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, step: str, text: str, fields: object = None) -> None:
        self.lines.append(f"{step}: {text}")


class TestFullDisk:
    """With a file system of 4 MB."""

    __test__ = can_mount()

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "small"
        folder.mkdir()
        with mounted(folder, "4m"):
            yield folder

    def test_weights_that_have_no_room(self, small: Path, s3_settings: S3Settings) -> None:
        store = ObjectStore(s3_settings)
        uri = store.put_bytes(
            store.bucket(Modality.MODEL), f"incoming/{uuid.uuid4()}", bytes(8 << 20)
        )
        with pytest.raises(BuildFailed, match=r"^weights: 8388608 bytes are to come and .* free"):
            copy_weights(uri, store, small, Lines())
        assert not list((small / "sha256").iterdir())

    def test_a_source_that_has_no_room(self, small: Path, tmp_path: Path) -> None:
        noise = subprocess.run(
            ["head", "-c", "9000000", "/dev/urandom"], capture_output=True, check=True
        )
        with git_host(tmp_path) as host:
            host.make("large", {"noise": noise.stdout})
            limits = SourceLimits(hosts=[host.netloc], ca=host.ca)
            context = BuildContext(data_dir=small, log=Lines())
            with pytest.raises(BuildFailed, match=r"^source.*(No space left|disk)"):
                fetch_source(host.url("large"), None, small / "source", limits, context)
            # Small as it is packed, and too large as files.
            host.make("zeros", {"zeros": bytes(9_000_000)})
            with pytest.raises(BuildFailed, match=r"^source: the disk of the build host is full"):
                fetch_source(host.url("zeros"), None, small / "source", limits, context)
            assert list(small.iterdir()) == []
            # As much as fits once, and not beside its copy in the build context.
            host.make(
                "twice", {"cog.yaml": "predict: p.py:P\n", "p.py": "", "zeros": bytes(2_500_000)}
            )
            fetched = fetch_source(host.url("twice"), None, small / "source", limits, context)
            cog = TemplateFiles(get_template("cog").path, SHARED_DIR, cog=True)
            with pytest.raises(BuildFailed, match=r"^source: the disk of the build host is full"):
                lay_out(small / "context", cog, fetched.path, Lines())

    def test_wheels_that_have_no_room(self, small: Path) -> None:
        template = get_template("digits-diffusion")
        context = BuildContext(data_dir=small, log=Lines(), timeout=200.0)
        files = TemplateFiles(template.path, SHARED_DIR)
        request = BuildRequest(
            build_id="full", recipe=lay_out(context.scratch("full") / "context", files, None, Lines()),
            template_name=template.name, template_hash=template.hash, model_id="test/full", version="v1",
            base_image="none", sdk_dir=SDK_DIR,
        )  # fmt: skip
        with pytest.raises(BuildFailed, match=r"^(sdk|lock|wheels|venv).*(No space left|full)"):
            VenvBackend().build(request, context)
        # No folder that another build would take for whole.
        assert not [p for p in (small / "wheelhouses").iterdir() if len(p.name) == 64]
        assert not (small / "venvs").exists()
