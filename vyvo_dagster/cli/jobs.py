"""`vyvo jobs`, `vyvo job`, `vyvo cancel`."""

import json
from collections.abc import Callable
from pathlib import Path

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.following import follow, show_result
from vyvo_dagster.cli.output import age, plain, seconds, table
from vyvo_dagster.client import Client, Job, JobSummary
from vyvo_dagster.client.models import Attempt
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.errors import VyvoError

__all__ = ["cancel", "dead_letters", "job", "jobs", "requeue"]


@click.command(epilog="\b\nExamples:\n  vyvo jobs --status failed\n  vyvo jobs --model vyvo/digits"
               " --json | jq '.items[].job_id'")  # fmt: skip
@click.option("--status", type=click.Choice([str(s) for s in JobState]), help="Only in this state.")
@click.option("--model", "model_id", help="Only of this model (owner/name).")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: items, next_cursor.")
@client_command
def jobs(
    where: Where, status: str | None, model_id: str | None, limit: int, cursor: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List jobs, newest first."""
    with where.client() as client:
        page = client.jobs(status=status, model_id=model_id, cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("job", "status", "model", "priority", "age", "took", "attempt", "error")
    click.echo(table(head, [_row(each) for each in page.items]) if page.items else "no jobs")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def _row(each: JobSummary) -> tuple[object, ...]:
    status = str(each.status)
    if each.status is JobState.RUNNING and each.progress:
        status += f" {each.progress:.0%}"
    took = age(each.started_at, each.completed_at)
    return (
        each.job_id, status, f"{each.model_id}@{each.version}", each.priority,
        age(each.created_at), took, f"{each.attempt}/{each.max_attempts}",
        "" if each.error is None else each.error.code,
    )  # fmt: skip


@click.command(epilog="\b\nExamples:\n  vyvo job $ID\n  vyvo job $ID --follow --output pictures/")
@click.argument("job_id")
@click.option(
    "-f", "--follow", "following", is_flag=True, help="Show its progress, then its result."
)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path),
    help="Follow, then save its artifacts in this directory.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout.")
@client_command
def job(
    where: Where, job_id: str, following: bool, output: Path | None, as_json: bool
) -> int | None:
    """Show a job. With --follow the exit status is 0 only if it succeeds."""
    with where.client() as client:
        if following or output is not None:
            return show_result(client, follow(client, job_id), output, as_json=as_json)
        found = client.job(job_id)
    click.echo(found.model_dump_json() if as_json else _described(found))
    return None


def _described(found: Job) -> str:
    error = "" if found.error is None else f"{found.error.code}: {found.error.message}"
    waits = "" if found.queue_position is None else f", position {found.queue_position}"
    cancel = ", cancel asked for" if found.cancel_requested and not found.ended else ""
    lines = [
        ("job", found.job_id), ("status", f"{found.status}{waits}{cancel}"),
        ("model", f"{found.model_id}@{found.version}"), ("tenant", found.tenant),
        ("priority", found.priority), ("attempts", f"{found.attempt} of {found.max_attempts}"),
        ("created", f"{found.created_at:%Y-%m-%d %H:%M:%S} UTC, {age(found.created_at)} ago"),
        ("waited", age(found.created_at, found.dispatched_at or found.completed_at)),
        ("ran", age(found.started_at, found.completed_at)),
        *((f"  {phase}", seconds(value)) for phase, value in found.timings.items()),
        ("error", error), ("input", json.dumps(found.input)),
        ("output", "" if found.output is None else json.dumps(found.output)),
        *(("attempt", _attempt(a)) for a in found.attempts),
        *(("artifact", f"{a.mime_type}, {a.size_bytes} bytes, {a.presigned_url or a.url}")
          for a in found.artifacts),
    ]  # fmt: skip
    return "\n".join(f"{name:<10} {plain(value)}" for name, value in lines if value != "")


def _attempt(made: Attempt) -> str:
    why = ": ".join(text for text in (made.error_code, made.error_message) if text)
    ended = f"{made.outcome or 'under way'}{f' ({why})' if why else ''}"
    return f"{made.attempt} on {made.node_id}: {ended}"


@click.command(epilog="\b\nExample:\n  vyvo jobs --status queued --json | jq -r '.items[].job_id'"
               " | xargs vyvo cancel")  # fmt: skip
@click.argument("job_ids", nargs=-1, required=True)
@client_command
def cancel(where: Where, job_ids: tuple[str, ...]) -> int:
    """Cancel jobs: at once where they wait, else by a signal, 10 s of grace, and a kill."""

    def one(client: Client, job_id: str) -> str:
        now = client.cancel(job_id)
        return f"{now.job_id} {now.status if now.ended else 'cancel asked for'}"

    return _each(where, "cancel", job_ids, one)


@click.command(epilog="\b\nExample:\n  vyvo dead-letters --json | jq -r '.items[].id' | xargs vyvo"
               " requeue")  # fmt: skip
@click.argument("job_ids", nargs=-1, required=True)
@click.option(
    "--priority", type=click.Choice([str(p) for p in Priority]), help="[default: as it was]"
)
@click.option("--ttl", type=click.IntRange(1, 7 * 86400), help="Seconds it may wait in the queue.")
@client_command
def requeue(
    where: Where, job_ids: tuple[str, ...], priority: str | None, ttl: int | None
) -> int:  # fmt: skip
    """Queue jobs again that have failed, expired or been canceled, with fresh attempts."""

    def one(client: Client, job_id: str) -> str:
        now = client.requeue(job_id, priority=priority, ttl_seconds=ttl)
        return f"{now.job_id} {now.status}, position {now.queue_position}"

    return _each(where, "requeue", job_ids, one)


@click.command("dead-letters")
@click.option("--model", "model_id", help="Only of this model (owner/name).")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: items, next_cursor.")
@client_command
def dead_letters(
    where: Where, model_id: str | None, limit: int, cursor: str | None, as_json: bool
) -> None:
    """List what failed through no fault of its prediction: lost nodes, crashed runners."""
    with where.client() as client:
        page = client.dead_letters(model_id=model_id, cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("id", "kind", "model", "age", "attempts", "last node", "reason")
    rows = [
        (d.id, d.kind, d.stream if d.model_id is None else f"{d.model_id}@{d.version}", age(d.at),
         d.attempts or "-", d.last_node_id or "-", f"{d.reason}: {d.detail[:120]}")
        for d in page.items
    ]  # fmt: skip
    click.echo(table(head, rows) if rows else "no dead letters")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def _each(
    where: Where, verb: str, job_ids: tuple[str, ...], act: Callable[[Client, str], str]
) -> int:
    """Do it to each job; one that fails is told of and does not stop the others."""
    bad = 0
    with where.client() as client:
        for job_id in job_ids:
            try:
                click.echo(act(client, job_id))
            except VyvoError as error:
                bad += 1
                click.echo(f"vyvo {verb}: {plain(job_id)}: {plain(error.detail)}", err=True)
    return 1 if bad else 0
