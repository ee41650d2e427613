"""Workflows to play with, and an engine that moves their runs on."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.workflow.definition import parse
from vyvo_dagster.domain.workflow.events import RunEventKind, run_event, step_event
from vyvo_dagster.domain.workflow.progress import advance
from vyvo_dagster.domain.workflow.run import Outcome, Run, Step, finish
from vyvo_dagster.domain.workflow.state import ACTIVE, StepState
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.events import publish_many

from .world import Api, Version, unique

ARTIFACT = {
    "type": "image", "url": "s3://vyvo-image/a.png", "size_bytes": 3, "mime_type": "image/png",
    "expires_at": None,
}  # fmt: skip


def definition(version: Version, name: str | None = None) -> dict[str, Any]:
    return {
        "name": name or unique("w-"),
        "description": "two steps",
        "inputs": {"digits": {"type": "array", "items": {"type": "integer"}, "default": [1, 2]}},
        "steps": [
            {"name": "make", "model": version.model_id, "for_each": "${{ inputs.digits }}",
             "input": {"digit": "${{ item }}"}},
            {"name": "count", "operation": "concat", "input": {"values": ["${{ len(steps.make.output) }}"]}},
        ],
        "outputs": {"count": "${{ steps.count.output }}"},
        "triggers": [{"name": "daily", "cron": "0 3 * * *", "timezone": "Europe/Berlin"}],
    }  # fmt: skip


class Engine:
    """Moves runs on as an engine does, one by one, without jobs."""

    def __init__(self, api: Api, database: Database) -> None:
        self.api = api
        self.database = database
        self.id = uuid7()

    async def turn(self, run_id: UUID, outcome: Outcome | None = None) -> dict[str, Step]:
        """End every attempt under way by `outcome`, then do what follows."""
        now = datetime.now(UTC)
        async with self.database.transaction() as store:
            row = await store.workflow_runs.get(run_id, None, lock=True)
            assert row is not None
            version = await store.workflows.version_by_id(row.version_id)
            assert version is not None
            document = parse(version.definition)
            rows = (await store.workflow_runs.steps_of([run_id]))[run_id]
            changed: dict[str, Step] = {}
            for step in rows.values():
                whole = document.steps[step.name].mapped and step.map_index is None
                if outcome is not None and step.state in ACTIVE and not whole:
                    changed[step.key] = finish(document, step, outcome, now)
            run = Run(
                run_id, row.inputs, row.started_at or now, row.cancel_requested_at is not None
            )
            found = advance(document, run, rows | changed, now, new_id=uuid7)
            changed |= {step.key: step for step in found.changed}
            await store.workflow_runs.upsert_steps(list(changed.values()))
            events: list[tuple[str, str, Any]] = [
                (str(run_id), RunEventKind.STEP, step_event(s)) for s in changed.values()
            ]
            if found.end is not None:
                await store.workflow_runs.end({run_id: found.end})
                data = run_event(
                    workflow=row.name, version=row.version, state=found.end.state,
                    outputs=found.end.outputs, error_code=found.end.error_code,
                    error_message=found.end.error_message,
                )  # fmt: skip
                events.append((str(run_id), RunEventKind.COMPLETED, data))
        async with connect(self.api.settings.redis_url) as redis:
            await publish_many(redis, events)
        return rows | changed


OK = Outcome(StepState.SUCCEEDED, output={"n": 1, "image": ARTIFACT})
BAD = Outcome(StepState.FAILED, error_code="prediction_failed", error_message="boom")


def key_with(
    admin: httpx.Client, api: Api, *scopes: str, tenant: str | None = None
) -> httpx.Client:
    body = {"name": "k", "tenant": tenant or unique("t"), "scopes": list(scopes)}
    answer = admin.post("/api/keys", json=body)
    assert answer.status_code == 201, answer.text
    return api.client(answer.json()["key"])


def pushed(client: httpx.Client, document: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/api/workflows", json=document)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def started(client: httpx.Client, name: str, **body: Any) -> UUID:
    answer = client.post(f"/api/workflows/{name}/runs", json=body)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/api/workflow-runs/{answer.json()['run_id']}"
    return UUID(answer.json()["run_id"])


def events_of(client: httpx.Client, run_id: UUID, last: str = "") -> list[tuple[str, str, Any]]:
    """(id, kind, data) of a run's stream until it ends."""
    found: list[tuple[str, str, Any]] = []
    headers = {"Last-Event-ID": last} if last else {}
    fields: dict[str, str] = {}
    with client.stream("GET", f"/api/workflow-runs/{run_id}/events", headers=headers) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line:
                if "event" in fields:
                    found.append(
                        (fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                    )
                fields = {}
            elif not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
    return found
