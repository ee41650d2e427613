"""Requests made of the OpenAPI document, by schemathesis: no 500, and no answer it does not describe.

Few for each operation; `make fuzz` sends many against a stack that runs.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vyvo_dagster.settings import S3Settings

from .world import Api, Running, make_settings

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)

FOLLOWED = r"^/api/(events|builds/.*/logs|(jobs|workflow-runs)/.*/events|artifacts/sweeps)$"


@pytest.fixture(scope="module")
def own(
    make_database: Callable[[str], str], redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Api]:  # fmt: skip
    """An api whose database is its own, and whose pools start nothing."""
    settings = make_settings(
        make_database("migrated"), redis_url, tmp_path_factory.mktemp("data"), local_agents=0
    )
    running = Running(settings, s3_settings)
    assert settings.admin_key is not None
    yield Api(running.url, settings.admin_key.get_secret_value(), settings, s3_settings)
    running.close()


@pytest.mark.parametrize("who", ["admin", "nobody"])
def test_no_answer_is_one_that_is_not_described(own: Api, who: str, tmp_path: Path) -> None:
    credential = ["-H", f"Authorization: Bearer {own.admin_key}"] if who == "admin" else []
    # What is followed has no end to wait for where nothing runs, and there is no Dagster to sweep by.
    left_out = ["--exclude-path-regex", FOLLOWED] if who == "admin" else []
    ran = subprocess.run(
        [str(Path(sys.executable).with_name("st")), "run", f"{own.url}/openapi.json", *credential,
         *left_out, "--phases", "examples,fuzzing", "--max-examples", "4", "--checks", CHECKS,
         "--request-timeout", "90", "--suppress-health-check", "all", "--continue-on-failure", "--no-shrink", "--warnings", "off",
         "--seed", "7"],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    tail = "\n".join(line[:300] for line in ran.stdout.splitlines()[-120:])
    assert ran.returncode == 0, tail
    sent = re.search(r"(\d+) generated, (\d+) passed", ran.stdout)
    assert sent is not None, tail
    assert int(sent[1]) >= 200
    print(f"{who}: {sent[0]}")
