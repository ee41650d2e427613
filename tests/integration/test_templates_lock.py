"""Each template's environment resolves for the interpreter of the base image, wheels only."""

import subprocess
from pathlib import Path

import pytest
from uv import find_uv_bin

from runner_images import TEMPLATES_DIR, load_templates


@pytest.mark.parametrize("name", sorted(load_templates()))
def test_a_template_locks_with_hashes(name: str, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    argv = [find_uv_bin(), "pip", "compile", "--quiet", "--generate-hashes", "--no-header"]
    argv += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_31"]
    argv += ["--only-binary", ":all:", "--output-file", str(lock)]
    argv.append(str(TEMPLATES_DIR / name / "requirements.in"))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    pinned = [line for line in lock.read_text().splitlines() if line[:1].isalnum()]
    assert any(line.startswith("cog==0.23.") for line in pinned)
    assert lock.read_text().count("--hash=sha256:") >= len(pinned)
