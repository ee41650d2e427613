"""Take the picture of a workflow's run in Dagster's UI that docs/workflows.md shows.

    make demo WORKFLOW=1 KEEP=1
    python docs/take_screenshot.py http://127.0.0.1:3000/runs/<run id> docs/workflow-run.png

The run's address is in the last lines of the demo. Needs Chromium (`apt install chromium`).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_BYTES = 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def take(url: str, target: Path, width: int, height: int, seconds: int) -> None:
    """Write what a browser shows of a page after some seconds of its own time as a PNG.

    Raises:
        SystemExit: there is no browser, or it took no picture.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("there is no chromium on the PATH; apt install chromium")
    with tempfile.TemporaryDirectory() as profile:
        # The page draws itself from what it asks the server for: time runs until that has come.
        argv = [
            browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={profile}", f"--window-size={width},{height}",
            f"--virtual-time-budget={seconds * 1000}", f"--screenshot={target.resolve()}", url,
        ]  # fmt: skip
        subprocess.run(argv, check=True, timeout=300, stderr=subprocess.DEVNULL)
    size = target.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{target} has {size} bytes; choose a smaller window")
    sys.stdout.write(f"{target}: {size} bytes\n")


def main() -> None:
    """Take the picture that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("url", help="of the run in Dagster's UI")
    parser.add_argument("target", type=Path, help="PNG to write")
    parser.add_argument("--width", type=int, default=1500)
    parser.add_argument("--height", type=int, default=950)
    parser.add_argument("--seconds", type=int, default=20)
    given = parser.parse_args()
    take(given.url, given.target, given.width, given.height, given.seconds)


if __name__ == "__main__":
    main()
