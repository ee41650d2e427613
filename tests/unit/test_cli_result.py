"""What the end of a job looks like on a terminal."""

from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import pytest

from vyvo_dagster.cli.following import show_result
from vyvo_dagster.client import Client, Job
from vyvo_dagster.client.models import Artifact
from vyvo_dagster.domain.job import JobState


def test_the_url_of_an_artifact_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    artifact = Artifact.model_construct(presigned_url=None, url="s3://b/a\x1b[2J")
    job = Job.model_construct(
        job_id=UUID(int=1), status=JobState.SUCCEEDED, artifacts=(artifact,), output=None, error=None,
        created_at=datetime.now(UTC),
    )  # fmt: skip
    assert show_result(cast("Client", None), job, None, as_json=False) == 0
    assert capsys.readouterr().out == "s3://b/a[2J\n"
