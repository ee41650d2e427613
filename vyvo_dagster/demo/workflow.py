"""The shipped workflow `read-digits`: one model draws digits, another reads them, and what was read
stands below each picture of a contact sheet.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from vyvo_dagster.client import Client
from vyvo_dagster.domain.workflow.state import STEP, RunState

__all__ = ["READ_DIGITS", "Outcome", "WorkflowFailed", "read_digits", "workflow_table"]

READ_DIGITS: Final = Path(__file__).with_name("read-digits.json")
"""Its definition."""
_RUN_SECONDS: Final = 300


class WorkflowFailed(RuntimeError):
    """The run did not succeed; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the run."""

    run_id: str
    dagster_run_id: str
    drawn: list[int]
    read: list[str]
    sheet: Path


def read_digits(client: Client, folder: Path, console: Console) -> Outcome:
    """Push the workflow, run it with its defaults, follow it, and fetch its sheet."""
    document: dict[str, Any] = json.loads(READ_DIGITS.read_text())
    client.workflows.push(document)
    name = str(document["name"])
    run = client.workflows.run(name)
    told: set[str] = set()
    for event in client.workflows.events(run.run_id):
        key, state = event.data.get("key"), event.data["status"]
        if key is not None and state in STEP.terminal and key not in told:
            told.add(key)
            console.print(f"  {key:<10} {state}", highlight=False)
    done = client.workflows.wait(run.run_id, _RUN_SECONDS)
    if done.status != RunState.SUCCEEDED or done.outputs is None:
        raise WorkflowFailed(f"the run {done.run_id} ended as {done.status}: {done.error}")
    sheet = folder / "read-digits.png"
    (made,) = [a for step in done.steps if step.key == "sheet" for a in step.artifacts]
    assert made.presigned_url is not None
    client.save(made.presigned_url, sheet)
    return Outcome(
        run_id=str(done.run_id), dagster_run_id=str(done.dagster_run_id),
        drawn=list(document["inputs"]["digits"]["default"]), read=list(done.outputs["texts"]),
        sheet=sheet,
    )  # fmt: skip


def workflow_table(outcome: Outcome) -> Table:
    """What was drawn and what was read."""
    pairs = list(zip(outcome.drawn, outcome.read, strict=True))
    right = sum(str(drawn) == read for drawn, read in pairs)
    table = Table("drawn", "read", title=f"{right} of {len(pairs)} digits were read as drawn")
    for drawn, read in pairs:
        table.add_row(str(drawn), read, style="" if str(drawn) == read else "bold red")
    return table
