"""`vyvo workflow`: definitions checked, pushed and drawn; runs started, followed and ended."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.output import age, plain, seconds, table
from vyvo_dagster.cli.submit import parse_pairs, read_object
from vyvo_dagster.cli.workflow_following import follow, show_run
from vyvo_dagster.client import Client
from vyvo_dagster.client.workflow_models import GraphStep, Validation, WorkflowRun
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.domain.workflow import graph as drawing
from vyvo_dagster.domain.workflow.state import RunState
from vyvo_dagster.errors import InvalidInput, InvalidWorkflow

__all__ = ["workflow"]

_FILE = click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout.")


@click.group()
def workflow() -> None:
    """Check, push, run and follow workflows."""


@workflow.command()
@_FILE
@_JSON
@client_command
def validate(where: Where, file: Path, as_json: bool) -> int:
    """Check the definition in FILE (- for stdin) against the models of the installation."""
    with where.client() as client:
        found = client.workflows.validate(read_object(file))
    if as_json:
        click.echo(found.model_dump_json())
    elif found.valid:
        click.echo(f"{file}: {len(found.steps)} steps, no faults")
    else:
        _say_faults(file, found)
    return 0 if found.valid else 1


def _say_faults(file: Path, found: Validation) -> None:
    for problem in found.problems:
        click.echo(plain(f"{file}: {problem} [{problem.code}]"), err=True)


@workflow.command()
@_FILE
@_JSON
@client_command
def push(where: Where, file: Path, as_json: bool) -> int:
    """Make the definition in FILE (- for stdin) the latest version of its workflow."""
    document = read_object(file)
    with where.client() as client:
        try:
            pushed = client.workflows.push(document)
        except InvalidWorkflow as error:
            problems = error.extra.get("problems")
            if not isinstance(problems, list):
                raise
            _say_faults(file, Validation.model_validate(
                {"valid": False, "problems": problems, "steps": []}
            ))  # fmt: skip
            return 1
    if as_json:
        click.echo(pushed.model_dump_json())
    else:
        said = "pushed" if pushed.created else "is already"
        click.echo(f"{said} {pushed.name} version {pushed.version}")
    return 0


@workflow.command(epilog="\b\nExample:\n  vyvo workflow run contact-sheet -i 'seeds=[1,2,3]'"
                  " --follow")  # fmt: skip
@click.argument("name")
@click.option(
    "-i", "--input", "pairs", multiple=True, metavar="KEY=VALUE", help="One input; repeatable."
)
@click.option(
    "--file", "file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="JSON object with the inputs, - for stdin; -i goes over it.",
)  # fmt: skip
@click.option("--version", type=click.IntRange(1), help="[default: the latest]")
@click.option("--priority", type=click.Choice([str(p) for p in Priority]), help="Of all its jobs.")
@click.option("--idempotency-key", help="The same key never starts a second run.")
@click.option("-f", "--follow", "following", is_flag=True, help="Show its steps until it ends.")
@_JSON
@client_command
def run(
    where: Where, name: str, pairs: tuple[str, ...], file: Path | None, version: int | None,
    priority: str | None, idempotency_key: str | None, following: bool, as_json: bool,
) -> int:  # fmt: skip
    """Run the workflow NAME. With --follow the exit status is 0 only if it succeeds."""
    given = read_object(file) | parse_pairs(pairs)
    with where.client() as client:
        started = client.workflows.run(
            name, given, version=version, priority=priority, idempotency_key=idempotency_key
        )
        return _shown(client, started, following, as_json)


def _shown(client: Client, started: WorkflowRun, following: bool, as_json: bool) -> int:
    if following:
        click.echo(f"run {started.run_id}", err=True)
        return show_run(follow(client, started.run_id), as_json=as_json)
    click.echo(started.model_dump_json() if as_json else str(started.run_id))
    return 0


@workflow.command("list")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@_JSON
@client_command
def list_workflows(where: Where, limit: int, cursor: str | None, as_json: bool) -> None:
    """List workflows, newest first."""
    with where.client() as client:
        page = client.workflows.list(cursor=cursor, limit=limit)
    rows = [
        (w.name, w.latest_version, "paused" if w.paused else "", age(w.updated_at), w.description[:60])
        for w in page.items
    ]  # fmt: skip
    _show_page(
        page.model_dump_json() if as_json else None, "no workflows",
        ("workflow", "version", "", "changed", "description"), rows, page.next_cursor,
    )  # fmt: skip


@workflow.command()
@click.option("--workflow", "name", help="Only of this workflow.")
@click.option("--status", type=click.Choice([str(s) for s in RunState]), help="Only in this state.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@_JSON
@client_command
def runs(
    where: Where, name: str | None, status: str | None, limit: int, cursor: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List runs, newest first."""
    with where.client() as client:
        page = client.workflows.runs(workflow=name, status=status, cursor=cursor, limit=limit)
    rows = [
        (r.run_id, f"{r.workflow} v{r.version}", r.status, r.trigger, age(r.created_at),
         seconds(r.seconds), "" if r.error is None else f"{r.error.code}: {r.error.message[:80]}")
        for r in page.items
    ]  # fmt: skip
    _show_page(
        page.model_dump_json() if as_json else None, "no runs",
        ("run", "workflow", "status", "trigger", "age", "took", "error"), rows, page.next_cursor,
    )  # fmt: skip


def _show_page(
    as_json: str | None, nothing: str, head: tuple[str, ...], rows: Sequence[tuple[object, ...]],
    cursor: str | None,
) -> None:  # fmt: skip
    if as_json is not None:
        click.echo(as_json)
        return
    click.echo(table(head, rows) if rows else nothing)
    if cursor is not None:
        click.echo(f"more: --cursor {cursor}", err=True)


@workflow.command()
@click.argument("run_id")
@click.option("-f", "--follow", "following", is_flag=True, help="Show its steps until it ends.")
@_JSON
@client_command
def show(where: Where, run_id: str, following: bool, as_json: bool) -> int:
    """Show a run with its steps. With --follow the exit status is 0 only if it succeeds."""
    with where.client() as client:
        if following:
            return show_run(follow(client, run_id), as_json=as_json)
        show_run(client.workflows.get_run(run_id), as_json=as_json)
    return 0


@workflow.command(epilog="\b\nExamples:\n  vyvo workflow graph contact-sheet\n  vyvo workflow graph"
                  " sheet.json --svg sheet.svg\n  vyvo workflow graph $RUN --svg run.svg")  # fmt: skip
@click.argument("what")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write the graph to this file."
)
@client_command
def graph(where: Where, what: str, svg: Path | None) -> int:
    """Draw a workflow: its name, a run's id (with its states), or a file that ends in .json."""
    with where.client() as client:
        title, nodes = _nodes(client, what)
    if svg is None:
        click.echo(plain_lines(drawing.text(nodes)))
    else:
        svg.write_text(drawing.svg(nodes, title), encoding="utf-8")
        click.echo(str(svg))
    return 0


def plain_lines(text: str) -> str:
    """Text without control characters but its line breaks."""
    return "\n".join(plain(line) for line in text.split("\n"))


def _nodes(client: Client, what: str) -> tuple[str, list[drawing.Node]]:
    if what.endswith(".json"):
        path = Path(what)
        found = client.workflows.validate(read_object(path))
        if not found.valid:
            _say_faults(path, found)
            raise InvalidInput(f"{what} has {len(found.problems)} faults; there is no graph of it")
        return path.stem, [_node(step) for step in found.steps]
    try:
        run_id = UUID(what)
    except ValueError:
        known = client.workflows.get(what)
        return f"{known.name} version {known.latest_version}", [_node(s) for s in known.steps]
    run = client.workflows.get_run(run_id)
    version = client.workflows.version(run.workflow, run.version)
    states = {step.key: str(step.status) for step in run.steps}
    # As it was pushed: it may name models by now that no new version may.
    nodes = [_node(step, states.get(step.name)) for step in version.steps]
    return f"{run.workflow} run {run.run_id}", nodes


def _node(step: GraphStep, state: str | None = None) -> drawing.Node:
    return drawing.Node(step.name, step.what, step.needs, step.mapped, step.conditional, state)


@workflow.command()
@click.argument("run_id")
@_JSON
@client_command
def cancel(where: Where, run_id: str, as_json: bool) -> int:
    """Cancel a run: what waits does not start, and the jobs of its steps are canceled."""
    return _act(where, as_json, lambda client: client.workflows.cancel(run_id))


@workflow.command()
@click.argument("run_id")
@click.option("-f", "--follow", "following", is_flag=True, help="Show its steps until it ends.")
@_JSON
@client_command
def retry(where: Where, run_id: str, following: bool, as_json: bool) -> int:
    """Run again what has failed in a run; steps that succeeded are kept."""
    with where.client() as client:
        return _shown(client, client.workflows.retry(run_id), following, as_json)


@workflow.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Let them fire again.")
@_JSON
@client_command
def pause(where: Where, name: str, off: bool, as_json: bool) -> int:
    """Let the triggers of the workflow NAME rest."""
    with where.client() as client:
        found = client.workflows.pause(name, not off)
    click.echo(
        found.model_dump_json() if as_json else f"{found.name} {'paused' if found.paused else 'on'}"
    )
    return 0


@workflow.command()
@client_command
def schema(where: Where) -> None:
    """Print the JSON Schema of definitions, for an editor."""
    with where.client() as client:
        json.dump(client.workflows.schema(), sys.stdout, indent=2)
    click.echo()


def _act(where: Where, as_json: bool, act: Callable[[Client], Any]) -> int:
    with where.client() as client:
        found: WorkflowRun = act(client)
    ended = found.status if found.ended else "cancel asked for"
    click.echo(found.model_dump_json() if as_json else f"{found.run_id} {ended}")
    return 0
