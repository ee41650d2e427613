"""A client that submits jobs through every outage, and cancels some of them."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import httpx
from uuid_utils.compat import uuid7

from tests.chaos.stack import MODEL, Stack

__all__ = ["Load"]

_LARGEST_BATCH = 20
_CANCELED = 0.03
_PATIENCE = 240


@dataclass
class Load:
    """Submits jobs at a rate; keeps what was acknowledged.

    An outage may show as a connection that breaks, or as a 503 with Retry-After; any other answer
    is a failure. Each submission has an idempotency key and is tried until it is acknowledged.
    """

    stack: Stack
    jobs: int
    per_second: float
    random: random.Random
    accepted: list[str] = field(default_factory=list[str])
    canceled: set[str] = field(default_factory=set[str])
    refusals: int = 0
    breaks: int = 0

    async def run(self) -> None:
        """Submit all jobs; returns when each was acknowledged."""
        loop = asyncio.get_running_loop()
        began, made = loop.time(), 0
        async with self.stack.client() as client, asyncio.TaskGroup() as tasks:
            while made < self.jobs:
                count = min(self.random.randint(1, _LARGEST_BATCH), self.jobs - made)
                tasks.create_task(self._submit(client, [self._job() for _ in range(count)]))
                made += count
                await asyncio.sleep(max(began + made / self.per_second - loop.time(), 0))

    def _job(self) -> dict[str, Any]:
        seconds = self.random.choice([0, 0.02, 0.1, 0.3])
        priority = self.random.choice(["interactive", "standard", "batch"])
        return {"model_id": MODEL, "input": {"sleep_seconds": seconds}, "priority": priority}

    async def _submit(self, client: httpx.AsyncClient, jobs: list[dict[str, Any]]) -> None:
        many = len(jobs) > 1
        path, body = ("/api/jobs/batch", {"jobs": jobs}) if many else ("/api/jobs", jobs[0])
        answer = await self._tried(client, path, body)
        assert answer.status_code == 202, answer.text
        ids = [j["job_id"] for j in answer.json()["jobs"]] if many else [answer.json()["job_id"]]
        self.accepted += ids
        for job_id in ids:
            if self.random.random() < _CANCELED:
                await asyncio.sleep(self.random.choice([0, 0.05, 0.5]))
                answer = await self._tried(client, f"/api/jobs/{job_id}/cancel", None)
                # A job that has ended cannot be canceled any more.
                assert answer.status_code in {200, 409}, answer.text
                if answer.status_code == 200:
                    self.canceled.add(job_id)

    async def _tried(self, client: httpx.AsyncClient, path: str, body: Any) -> httpx.Response:
        headers = {} if body is None else {"Idempotency-Key": uuid7().hex}
        for _ in range(_PATIENCE):
            try:
                answer = await client.post(path, json=body, headers=headers)
            except httpx.TransportError:
                self.breaks += 1
            else:
                if answer.status_code != 503:
                    return answer
                assert int(answer.headers["Retry-After"]) >= 1, answer.headers
                self.refusals += 1
            await asyncio.sleep(self.random.uniform(0.1, 0.5))
        raise AssertionError(f"POST {path} was never answered")
