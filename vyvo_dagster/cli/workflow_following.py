"""A workflow run followed live by a person, to its end."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from uuid import UUID

import click

from vyvo_dagster.cli.output import LiveLine, plain, seconds, table
from vyvo_dagster.client import Client
from vyvo_dagster.client.workflow_models import Step, WorkflowRun
from vyvo_dagster.domain.workflow.events import RunEventKind
from vyvo_dagster.domain.workflow.state import ACTIVE, STEP, RunState, StepState

__all__ = ["follow", "show_run"]


def follow(client: Client, run_id: UUID | str) -> WorkflowRun:
    """Show the steps of a run on stderr as they end; the run as it ended."""
    try:
        with LiveLine() as line, closing(client.workflows.events(run_id)) as events:
            view = _View(line)
            for event in events:
                view.take(event.kind, event.data)
    except KeyboardInterrupt:
        click.echo(
            f"\nthe run goes on; follow it again with: vyvo workflow show {run_id} --follow",
            err=True,
        )
        sys.exit(130)
    return client.workflows.get_run(run_id)


class _View:
    """A line for each step that has ended, and one of what runs."""

    def __init__(self, line: LiveLine) -> None:
        self._line = line
        self._states: dict[str, StepState] = {}

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == RunEventKind.STEP:
            self._step(data)
        elif kind != RunEventKind.COMPLETED:
            self._line.show(str(data.get("status", kind)), step=False)
        else:
            self._line.show(str(data.get("status", kind)))

    def _step(self, data: Mapping[str, Any]) -> None:
        key = str(data.get("key"))
        try:
            state = StepState(str(data.get("status")))
        except ValueError:
            return  # of a newer server
        known, self._states[key] = self._states.get(key), state
        error = data.get("error")
        why = f": {error.get('code')}: {error.get('message')}" if isinstance(error, dict) else ""
        if state in STEP.terminal and known is not state:
            self._line.above(f"{state:<10} {key}{why}")
        elif state is StepState.PENDING and data.get("retry_at"):
            self._line.above(f"{'again':<10} {key}{why}")
        busy = sorted(k for k, s in self._states.items() if s in ACTIVE)
        done = sum(s in STEP.terminal for s in self._states.values())
        more = f" and {len(busy) - 4} more" if len(busy) > 4 else ""
        shown = f", {', '.join(busy[:4])}{more} under way" if busy else ""
        self._line.show(f"{done} ended{shown}", step=False)


def show_run(run: WorkflowRun, *, as_json: bool) -> int:
    """Print a run; the exit status: 0 unless it has ended otherwise than well."""
    if as_json:
        click.echo(run.model_dump_json())
    else:
        head = f"{run.workflow} version {run.version}: {run.status}"
        click.echo(plain(f"{head}, {seconds(run.seconds)}" if run.seconds is not None else head))
        rows = [_row(step) for step in run.steps]
        if rows:
            click.echo(table(("step", "status", "attempt", "at", "waited", "ran", "error"), rows))
        if run.outputs:
            click.echo(plain(json.dumps(run.outputs, ensure_ascii=False)))
        if run.dagster_url:
            click.echo(plain(run.dagster_url))
    if not run.ended or run.status is RunState.SUCCEEDED:
        return 0
    why = "" if run.error is None else f": {run.error.code}: {' '.join(run.error.message.split())}"
    click.echo(plain(f"run {run.run_id} has {run.status}{why}"), err=True)
    return 1


def _row(step: Step) -> tuple[object, ...]:
    timing = step.timing
    error = "" if step.error is None else f"{step.error.code}: {step.error.message[:100]}"
    if timing is None:
        return (step.key, step.status, step.attempt or "", "", "", "", error)
    return (
        step.key, step.status, step.attempt, f"+{seconds(timing.offset)}", seconds(timing.waited),
        seconds(timing.ran), error,
    )  # fmt: skip
