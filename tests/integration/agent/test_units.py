"""The shipped units, as systemd's own checker reads them."""

import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[3] / "deploy/systemd"


@pytest.mark.parametrize("name", ["vyvo-agent.service", "vyvo-runner@.service"])
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, tmp_path: Path) -> None:
    text = (UNITS / name).read_text()
    assert "ExecStart=/opt/vyvo/bin/vyvo " in text
    (tmp_path / name).write_text(text.replace("/opt/vyvo/bin/vyvo", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
