"""Rows of a run as entries of Dagster's event log: the same rows, the same entries, none twice."""

import dataclasses
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.run import Step
from vyvo_dagster.domain.workflow.state import RunState, StepState, TriggerKind
from vyvo_dagster.execution.workflows.events import Identity, RunEvents, identity
from vyvo_dagster.execution.workflows.jobs import build_job
from vyvo_dagster.execution.workflows.names import artifact_key, job_name, upstream_keys
from vyvo_dagster.store.workflow_records import WorkflowRun, WorkflowVersion

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DOCUMENT: dict[str, Any] = {
    "name": "w-x",
    "steps": [
        {"name": "a", "model": "o/m", "input": {}},
        {"name": "read", "model": "o/m", "for_each": "${{ steps.a.output }}", "input": {}},
        {"name": "pick", "operation": "select",
         "input": {"items": "${{ steps.read.output }}", "value": "${{ item }}"}},
        {"name": "end", "model": "o/m", "input": {"v": "${{ steps.pick.output }}"}},
    ],
}  # fmt: skip
VERSION = WorkflowVersion(
    id=uuid4(), workflow_id=uuid4(), tenant="t", name="w-x", version=2, definition=DOCUMENT,
    sha256="", created_by="k", created_at=BEGAN,
)  # fmt: skip
RUN = WorkflowRun(
    id=uuid4(), workflow_id=VERSION.workflow_id, version_id=VERSION.id, name="w-x", version=2,
    tenant="t", state=RunState.RUNNING, inputs={}, outputs=None, trigger_kind=TriggerKind.API,
    trigger_key=None, dagster_run_id=None, priority=None, cancel_requested_at=None, retry_of=None,
    error_code=None, error_message=None, engine_id=None, lease_expires_at=None, revision=1,
    reported_revision=0, traceparent=None, created_at=BEGAN, started_at=BEGAN,
    completed_at=None,
)  # fmt: skip


def step(key: str, **values: Any) -> Step:
    made: dict[str, Any] = {
        "id": uuid4(), "run_id": RUN.id, "key": key, "name": key.partition("[")[0],
        "map_index": int(key.partition("[")[2][:-1]) if "[" in key else None,
        "created_at": BEGAN, "attempt": 1, "job_id": uuid4(), "submitted_at": BEGAN,
    }  # fmt: skip
    return Step(**{**made, **values})


def told(run: WorkflowRun, *steps: Step) -> list[Identity]:
    events = RunEvents(run, parse(DOCUMENT), str(run.id), "job", None)
    return [identity(entry) for entry in events.entries({s.key: s for s in steps})]


def test_what_was_told_of_a_run_under_way_is_a_part_of_what_is_told_of_its_end() -> None:
    """Else a crash between the two would double or lose events."""
    begun = BEGAN + timedelta(milliseconds=20)
    ended = BEGAN + timedelta(seconds=1)
    waits = step("a", state=StepState.SUBMITTED)
    runs = dataclasses.replace(waits, state=StepState.RUNNING, started_at=begun)
    done = dataclasses.replace(runs, state=StepState.SUCCEEDED, completed_at=ended, output=[1, 2])
    over = dataclasses.replace(RUN, state=RunState.SUCCEEDED, completed_at=ended)
    stories = [told(RUN), told(RUN, waits), told(RUN, runs), told(RUN, done), told(over, done)]
    for before, after in pairwise(stories):
        assert set(before) < set(after)
        assert len(set(after)) == len(after)
    assert [kind for kind, key, _ in stories[-1] if key == "a"] == [
        "STEP_WORKER_STARTING", "STEP_START", "STEP_OUTPUT", "STEP_SUCCESS",
    ]  # fmt: skip
    assert stories[-1][-1][0] == "PIPELINE_SUCCESS"


def test_an_attempt_that_failed_stays_told_when_the_next_one_runs() -> None:
    begun, ended = BEGAN + timedelta(seconds=1), BEGAN + timedelta(seconds=2)
    first = step("a", state=StepState.RUNNING, started_at=begun)
    attempt = {"attempt": 1, "submitted_at": BEGAN.isoformat(), "started_at": begun.isoformat(),
               "completed_at": ended.isoformat(), "error_code": "x", "error_message": "y"}  # fmt: skip
    again = dataclasses.replace(
        first, attempt=2, attempts=[attempt], submitted_at=ended + timedelta(seconds=1),
        started_at=ended + timedelta(seconds=2),
    )  # fmt: skip
    # The first submission is told by its job's event alone, which the attempt has no more.
    before = [each for each in told(RUN, first) if each[0] != "STEP_WORKER_STARTING"]
    after = told(RUN, again)
    assert set(before) < set(after)
    assert [kind for kind, key, _ in after if key == "a"] == [
        "STEP_START", "STEP_UP_FOR_RETRY", "STEP_WORKER_STARTING", "STEP_RESTARTED",
    ]  # fmt: skip


def test_items_and_artifacts_of_one_moment_are_told_apart() -> None:
    art = {
        "type": "image",
        "url": "s3://b/x",
        "size_bytes": 1,
        "mime_type": "m",
        "expires_at": None,
    }
    items = step("read", state=StepState.RUNNING, job_id=None, started_at=BEGAN,
                 input={"items": [1, 1, 1]})  # fmt: skip
    two = step("read[0]", state=StepState.SUCCEEDED, started_at=BEGAN, completed_at=BEGAN,
               output=[art, art])  # fmt: skip
    found = told(RUN, items, two)
    assert len(set(found)) == len(found)
    kinds = [kind for kind, _, _ in found]
    assert kinds.count("ASSET_MATERIALIZATION") == 2
    assert [k for k, key, _ in found if key == "read__items"].count("STEP_OUTPUT") == 3


def test_a_version_is_a_job_with_an_op_a_step_and_dynamic_items() -> None:
    job = build_job(VERSION)
    assert job.name == job_name("t", "w-x", 2)
    assert {node.name for node in job.nodes} == {"a", "read", "read__items", "pick", "end"}
    assert job.tags["vyvo/workflow_version_id"] == str(VERSION.id)


def test_names_that_lose_a_character_stay_apart() -> None:
    assert job_name("t", "a-b", 1) != job_name("t", "a_b", 1)


def test_artifacts_are_made_from_the_model_and_those_behind_built_in_steps() -> None:
    definition = parse(DOCUMENT)
    found = [key.path for key in upstream_keys("t", definition, definition.steps["end"])]
    assert found == [["model_version"], list(artifact_key("t", "w-x", "read").path)]
