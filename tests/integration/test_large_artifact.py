"""A file larger than any buffer goes through `vyvo_runner` and a presigned URL in constant memory."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "large_artifact.py"


def test_300_mib_go_up_and_down_whole_in_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--mib", "300", "--dir", str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["checksum_equal"]
    assert told["size_equal"]
    assert told["upload_peak_mib"] < 200
    assert told["download_peak_mib"] < 200
