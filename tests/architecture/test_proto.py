"""The gRPC contract: tidy, and the code that is kept is the code that it gives."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, check=False, timeout=120
    )


def test_the_contract_is_tidy() -> None:
    buf = Path(sys.executable).parent / "buf"
    for command in (["lint"], ["format", "--diff", "--exit-code"]):
        result = run(buf, *command)
        assert result.returncode == 0, result.stdout + result.stderr


def test_generating_again_gives_the_same(tmp_path: Path) -> None:
    result = run(sys.executable, "proto/generate.py", tmp_path)
    assert result.returncode == 0, result.stderr
    kept = ROOT / "vyvo_dagster" / "protocol" / "grpc"
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made
    assert made == {path.name: path.read_text() for path in kept.glob("*_pb2*.py*")}
