"""A whole stack as `vyvo up` starts it, for as long as a benchmark needs it."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["process", "stack"]


@contextmanager
def process(argv: list[str], log: Path, **options: Any) -> Generator["subprocess.Popen[str]"]:
    """A child that is stopped, with what it started, when the block is left."""
    with log.open("w") as err:
        options = {"stdout": err, "stderr": err, "text": True, **options}
        child = subprocess.Popen(argv, start_new_session=True, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)


@contextmanager
def stack(
    data_dir: Path, *options: str, env: Mapping[str, str] | None = None
) -> Generator[dict[str, Any]]:
    """`vyvo up` with these options and further environment, and what it says of itself."""
    argv = [sys.executable, "-m", "vyvo_dagster.cli", "up", "--json", "--data-dir", str(data_dir)]
    argv += ["--engine", "process", *options]
    log = data_dir.with_suffix(".log")
    with process(argv, log, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"vyvo up did not start:\n{log.read_text()[-2000:]}")
        yield json.loads(line)
