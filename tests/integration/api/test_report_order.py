"""Reports of two nodes in any order, any number of times, against a model of what the record says.

A job is dispatched to one node, its lease ends, it is dispatched to another; meanwhile both nodes
report whatever they like. What counts is the attempt that the row names at that moment.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.dispatch.requeue import requeue_lost
from vyvo_dagster.store.attempts import LOST, Gone
from vyvo_dagster.store.database import Database
from vyvo_dagster.streams.client import connect
from vyvo_dagster.streams.events import replay

from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load

Step = tuple[Literal["lose", "again", "start", "progress", "succeed", "fail"], int]
FAILURE = {"code": "prediction_failed", "message": "no"}


@dataclass
class Model:
    """What the record is expected to say."""

    attempt: int = 1
    held: bool = True
    """Whether the current attempt is on its node, rather than lost."""
    ended: str | None = None

    def step(self, step: Step) -> int:
        """The status with which a report is answered; 200 for what the orchestrator does."""
        kind, attempt = step
        if kind == "lose":
            self.held = self.held and self.ended is not None
            return 200
        if kind == "again":
            if not self.held:
                self.attempt, self.held = 2, True
            return 200
        status = {"succeed": "succeeded", "fail": "failed"}.get(kind)
        if self.ended is not None:
            repeat = status == self.ended and attempt == self.attempt
            return 200 if repeat else 409
        if attempt != self.attempt or not self.held:
            return 409
        self.ended = status
        return 200


def timeline(dice: random.Random) -> Iterator[Step]:
    """Reports of both attempts, some twice, in any order; the orchestrator's steps in theirs."""
    kinds: list[Literal["start", "progress", "succeed", "fail"]] = [
        "start", "progress", "succeed", "fail",
    ]  # fmt: skip
    steps: list[Step] = [
        (kind, attempt) for kind in kinds for attempt in (1, 2) for _ in range(dice.randint(1, 3))
    ]
    dice.shuffle(steps)
    # Often early, so that not every history ends with the first attempt's first words.
    first = dice.randint(0, 4)
    steps.insert(first, ("lose", 1))
    steps.insert(dice.randint(first + 1, first + 4), ("again", 2))
    yield from steps


@pytest.mark.parametrize("seed", range(12))
async def test_any_order_of_reports(
    seed: int, api: Api, admin: httpx.Client, version: Version, database: Database
) -> None:
    nodes = {attempt: Agent(api) for attempt in (1, 2)}
    assignments: dict[int, UUID] = {}
    for attempt, node in nodes.items():
        node.register()
        assignments[attempt] = await load(admin, node, version)
    job_id = UUID(submit(admin, version))
    job = await dispatch(database, str(job_id), nodes[1], assignments[1])
    model = Model()
    ended_at: Any = None
    for step in timeline(random.Random(seed)):
        kind, attempt = step
        expected = model.step(step)
        match kind:
            case "lose":
                async with database.transaction() as store:
                    await requeue_lost(store, job, Gone(LOST), charged=False)
            case "again":
                async with database.transaction() as store:
                    now = await store.jobs.get(job_id, None)
                if now is not None and now.state == "queued":
                    await dispatch(database, str(job_id), nodes[2], assignments[2])
            case "succeed":
                answer = nodes[attempt].complete(job_id, attempt, "succeeded", output=attempt)
                assert answer.status_code == expected, (step, answer.text)
            case "fail":
                answer = nodes[attempt].complete(job_id, attempt, "failed", error=FAILURE)
                assert answer.status_code == expected, (step, answer.text)
            case _:
                fraction = {"fraction": 0.5} if kind == "progress" else {}
                body = {"attempt": attempt, **fraction}
                answer = nodes[attempt].post(f"/api/jobs/{job_id}/progress", body)
                assert answer.status_code == expected, (step, answer.text)
        shown = admin.get(f"/api/jobs/{job_id}").json()
        ended_at = ended_at or shown["completed_at"]
        assert shown["completed_at"] == ended_at, "a late report changed the end"
        assert (shown["status"] in {"succeeded", "failed"}) == (model.ended is not None), step
    for node in nodes.values():
        node.client.close()
    shown = admin.get(f"/api/jobs/{job_id}").json()
    assert shown["status"] == model.ended
    assert shown["attempt"] == model.attempt
    assert shown["output"] == (model.attempt if model.ended == "succeeded" else None)
    outcomes = [a["outcome"] for a in shown["attempts"]]
    assert outcomes == (["lost"] if model.attempt == 2 else []) + [model.ended]
    async with connect(api.settings.redis_url) as redis:
        kinds = [event.kind for event in await replay(redis, job_id)]
    assert kinds.count("completed") == 1
    assert kinds[-1] == "completed"
