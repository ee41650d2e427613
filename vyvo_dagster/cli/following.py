"""A job followed live by a person, to its result."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import click

from vyvo_dagster.cli.output import LiveLine, plain, seconds
from vyvo_dagster.client import Client, Event, Job
from vyvo_dagster.client.files import artifact_name
from vyvo_dagster.domain.job import JobEventKind, JobState
from vyvo_dagster.errors import VyvoError

__all__ = ["follow", "show_result"]

_CELLS: Final = 24


def follow(client: Client, job_id: UUID | str) -> Job:
    """Show a job's events on stderr as they come; the job as it ended."""
    try:
        with LiveLine() as line, closing(client.job_events(job_id)) as events:
            view = _View(client, line)
            for event in events:
                view.take(event)
    except KeyboardInterrupt:
        click.echo(f"\nthe job goes on; follow it again with: vyvo job {job_id} --follow", err=True)
        sys.exit(130)
    return client.job(job_id)


def show_result(client: Client, job: Job, output: Path | None, *, as_json: bool) -> int:
    """Print how a job ended and fetch its artifacts; the exit status: 0 for a success."""
    saved: list[Path] = []
    if output is not None:
        saved = [
            client.save(artifact.presigned_url, output / artifact_name(artifact))
            for artifact in job.artifacts
            if artifact.presigned_url is not None
        ]
    if as_json:
        shown = job.model_dump(mode="json") | {"saved": [str(path) for path in saved]}
        click.echo(json.dumps(shown))
    elif job.status is JobState.SUCCEEDED:
        for path in saved:
            click.echo(str(path))
        for artifact in () if saved else job.artifacts:
            click.echo(plain(artifact.presigned_url or artifact.url))
        if not job.artifacts:
            click.echo(json.dumps(job.output, indent=2))
    if job.status is JobState.SUCCEEDED:
        return 0
    why = "" if job.error is None else f": {job.error.code}: {' '.join(job.error.message.split())}"
    click.echo(plain(f"job {job.job_id} has {job.status}{why}"), err=True)
    return 1


class _View:
    """What is known of a job under way, as one line."""

    def __init__(self, client: Client, line: LiveLine) -> None:
        self._client = client
        self._line = line
        self._began = time.monotonic()
        self._node = ""
        self._fraction = 0.0

    def take(self, event: Event) -> None:
        data = event.data
        if event.kind == JobEventKind.PROGRESS:
            self._fraction = float(data.get("fraction") or 0.0)
            self._line.show(self._bar(), step=False)
        elif event.kind == JobEventKind.LOG:
            for text in data.get("lines", ()):
                self._line.above(f"  {text}")
        elif (said := self._said(event.kind, data)) is not None:
            self._line.show(said)

    def _said(self, kind: str, data: Mapping[str, Any]) -> str | None:
        """What a change of state is called; None where it is of no interest."""
        match kind:
            case JobEventKind.QUEUED | JobEventKind.POSITION:
                return _waiting(data)
            case JobEventKind.DISPATCHED | JobEventKind.STARTED:
                if kind == JobEventKind.DISPATCHED or not self._node:
                    self._node = self._name(data.get("node_id"))
                return (
                    f"{'running' if kind == JobEventKind.STARTED else 'dispatched'} on {self._node}"
                )
            case JobEventKind.LOADING:
                where = f" on {data['node']}" if data.get("node") else ""
                why = f": {data['detail']}" if data.get("detail") else ""
                return f"loading the model{where}: {data.get('state', '?')}{why}"
            case JobEventKind.REQUEUED:
                self._node, self._fraction = "", 0.0
                return f"queued again after attempt {data.get('attempt')}"
            case JobEventKind.COMPLETED:
                return (
                    f"{data.get('status')}, followed for {seconds(time.monotonic() - self._began)}"
                )
            case _:
                # Also kinds of a newer server, such as what a node does before it can start.
                return f"{kind}: {data['detail']}" if data.get("detail") else None

    def _bar(self) -> str:
        full = round(min(max(self._fraction, 0.0), 1.0) * _CELLS)
        bar = "#" * full + "." * (_CELLS - full)
        took = seconds(time.monotonic() - self._began)
        return f"running on {self._node}  [{bar}] {self._fraction:4.0%}  {took}"

    def _name(self, node_id: Any) -> str:
        """The node's name, or the end of its id for who may not read nodes."""
        try:
            return self._client.node(str(node_id)).name
        except VyvoError:
            return f"node …{str(node_id)[-6:]}"


def _waiting(data: Mapping[str, Any]) -> str:
    text = f"queued, position {data.get('queue_position', '?')}"
    if data.get("eta_seconds") is not None:
        text += f", about {seconds(float(data['eta_seconds']))}"
    return text + (f" ({data['detail']})" if data.get("detail") else "")
