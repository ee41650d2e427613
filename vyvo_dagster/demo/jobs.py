"""Twelve jobs, followed live by SSE, each to its picture on disk."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vyvo_dagster.client import Client
from vyvo_dagster.domain.job import JobEventKind, JobState

__all__ = ["Outcome", "Watcher", "run_jobs"]

# All ten digits, and two again.
DIGITS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 7)


class Watcher(Protocol):
    """What wants to know of progress; called from several threads."""

    def update(self, index: int, fraction: float, note: str) -> None: ...


@dataclass(slots=True)
class Outcome:
    """What became of one job. Times in seconds since its submission."""

    index: int
    digit: int
    job_id: str = ""
    node: str = ""
    status: str = ""
    error: str = ""
    started: float = 0.0
    total: float = 0.0
    events: int = 0
    png: Path | None = None
    artifact: dict[str, Any] = field(default_factory=dict)


def run_jobs(
    client: Client, model_id: str, version: str, folder: Path, watcher: Watcher
) -> list[Outcome]:
    """Submit all at once, follow each, fetch its picture through the presigned URL."""
    outcomes = [Outcome(index, digit) for index, digit in enumerate(DIGITS)]
    names = {str(node.id): node.name for node in client.nodes().items}
    ready = threading.Barrier(len(outcomes))

    def one(outcome: Outcome) -> None:
        ready.wait()
        _run(client, model_id, version, folder, names, outcome, watcher)

    with ThreadPoolExecutor(len(outcomes)) as pool:
        list(pool.map(one, outcomes))
    return outcomes


def _run(
    client: Client,
    model_id: str,
    version: str,
    folder: Path,
    names: dict[str, str],
    outcome: Outcome,
    watcher: Watcher,
) -> None:
    began = time.monotonic()
    submitted = client.submit(
        model_id,
        {"digit": outcome.digit, "count": 16, "gap": 1, "seed": outcome.index},
        version=version,
    )
    outcome.job_id = str(submitted.job_id)
    watcher.update(outcome.index, 0.0, f"queued, position {submitted.queue_position}")
    for event in client.job_events(outcome.job_id):
        outcome.events += 1
        match event.kind:
            case JobEventKind.DISPATCHED:
                node_id = str(event.data["node_id"])
                outcome.node = names.get(node_id, node_id)
            case JobEventKind.STARTED:
                outcome.started = time.monotonic() - began
                watcher.update(outcome.index, 0.0, f"on {outcome.node}")
            case JobEventKind.PROGRESS:
                watcher.update(outcome.index, event.data["fraction"] or 0.0, f"on {outcome.node}")
            case JobEventKind.COMPLETED:
                outcome.total = time.monotonic() - began
                outcome.status = event.data["status"]
                outcome.error = (event.data["error"] or {}).get("message", "")
                _fetch(client, folder, outcome, event.data["artifacts"])
            case _:
                pass
    watcher.update(outcome.index, 1.0, outcome.status)


def _fetch(client: Client, folder: Path, outcome: Outcome, artifacts: list[dict[str, Any]]) -> None:
    if outcome.status != JobState.SUCCEEDED or not artifacts:
        return
    outcome.artifact = artifacts[0]
    outcome.png = folder / f"{outcome.index:02d}-digit-{outcome.digit}.png"
    outcome.png.write_bytes(client.download(outcome.artifact["presigned_url"]))
