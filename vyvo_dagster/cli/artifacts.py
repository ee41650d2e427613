"""`vyvo artifacts`: list, save and collect what jobs made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.output import age, plain, table
from vyvo_dagster.client.artifacts import StoredArtifact, Sweep
from vyvo_dagster.client.files import artifact_name
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.domain.retention import ArtifactState, SweepState
from vyvo_dagster.errors import NotFound, Unavailable

__all__ = ["artifacts"]


@click.group()
def artifacts() -> None:
    """List and save what jobs made, and collect what is no longer wanted."""


@artifacts.command("ls", epilog="\b\nExample:\n  vyvo artifacts ls --type image --limit 5")
@click.option("--type", "kind", type=click.Choice([str(m) for m in Modality]), help="Of this kind.")
@click.option("--job", "job_id", help="Of this job.")
@click.option("--state", type=click.Choice([str(s) for s in ArtifactState]), help="In this state.")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: items, next_cursor.")
@client_command
def ls(
    where: Where, kind: str | None, job_id: str | None, state: str | None, limit: int,
    cursor: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List artifacts, newest first."""
    with where.client() as client:
        page = client.artifacts.list(
            type=kind, job_id=job_id, state=state, cursor=cursor, limit=limit
        )
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("artifact", "type", "size", "age", "expires", "state", "job")
    click.echo(table(head, [_row(a) for a in page.items]) if page.items else "no artifacts")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def _row(each: StoredArtifact) -> tuple[object, ...]:
    expires = "never" if each.expires_at is None else f"{each.expires_at:%Y-%m-%d %H:%M}"
    return (
        each.id, each.mime_type, _size(each.size_bytes), age(each.created_at), expires,
        each.state, each.job_id,
    )  # fmt: skip


@artifacts.command("get", epilog="\b\nExamples:\n  vyvo artifacts get $ID\n"
                   "  vyvo artifacts get $ID -o picture.png")  # fmt: skip
@click.argument("artifact_id")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Save it there, in a directory under its own name.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.IntRange(1), help="Life of the URL; the server's own is the most."
)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@client_command
def get(
    where: Where, artifact_id: str, output: Path | None, seconds: int | None, as_json: bool
) -> None:
    """Show an artifact and a URL that reads it, or save it."""
    with where.client() as client:
        found = client.artifacts.get(artifact_id, presign_seconds=seconds)
        if output is not None:
            if found.presigned_url is None:
                raise NotFound(f"artifact {found.id} is {found.state}: there is nothing to read")
            path = output / artifact_name(found) if output.is_dir() else output
            client.save(found.presigned_url, path)
            click.echo(f"{path}: {_size(found.size_bytes)}", err=True)
    if as_json:
        click.echo(found.model_dump_json())
    elif output is None:
        lines = {
            "artifact": found.id, "job": found.job_id, "type": f"{found.type}, {found.mime_type}",
            "size": _size(found.size_bytes), "state": found.state, "stored at": found.url,
            "expires": found.expires_at or "never", "url": found.presigned_url or "-",
        }  # fmt: skip
        click.echo("\n".join(f"{name:<10} {plain(value)}" for name, value in lines.items()))


@artifacts.command("gc", epilog="\b\nExamples:\n  vyvo artifacts gc --dry-run\n  vyvo artifacts gc")
@click.option("-n", "--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option("--force", is_flag=True, help="Delete orphans even where most objects are some.")
@click.option(
    "--grace-hours", type=click.FloatRange(1, 24 * 366),
    help="Objects without a row are spared until this age.  [default: 24]",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(1, 86400), default=3600.0, show_default=True,
    help="Seconds to wait for its end.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@client_command
def gc(
    where: Where, dry_run: bool, force: bool, grace_hours: float | None, timeout: float,
    as_json: bool,
) -> int:  # fmt: skip
    """Delete artifacts whose end has come and objects without a row; find rows without an object.

    Runs in Dagster, and by itself every hour and every day. The exit status is 1 where something could
    not be deleted.
    """
    with where.client() as client:
        asked = client.artifacts.collect(dry_run=dry_run, force=force, grace_hours=grace_hours)
        click.echo(f"pass {asked.id}", err=True)
        try:
            ended = client.artifacts.wait(asked.id, timeout)
        except TimeoutError as error:
            raise Unavailable(f"{error}; it goes on") from error
    click.echo(ended.model_dump_json() if as_json else _told(ended))
    refused = (ended.report or {}).get("orphans", {}).get("refused") is not None
    return int(ended.status is not SweepState.SUCCEEDED or (refused and not dry_run))


def _told(ended: Sweep) -> str:
    report = ended.report or {}
    lines = [*_expiry(report.get("expiry", {}), ended), *_orphans(report.get("orphans", {}), ended)]
    if ended.error is not None:
        lines.append(ended.error)
    return _plain_lines(lines) if lines else str(ended.status)


def _expiry(told: Mapping[str, Any], ended: Sweep) -> list[str]:
    if not told:
        return []
    if ended.dry_run:
        return [f"{told['expired']} artifacts have come to their end"]
    shared = f", {told['shared']} rows whose object another needs" if told["shared"] else ""
    return [
        (
            f"{told['expired']} artifacts expired, {told['deleted']} objects deleted"
            f" ({_size(told['deleted_bytes'])}){shared}, {told['failed']} could not be"
        ),
        *_errors(told),
    ]


def _orphans(told: Mapping[str, Any], ended: Sweep) -> list[str]:
    if not told:
        return []
    done = "would be deleted" if ended.dry_run else f"{told['deleted']} deleted"
    lines = [
        (
            f"{told['listed']} objects, {told['orphans']} without a row ({_size(told['orphan_bytes'])}),"
            f" {done}; {told['young']} too young to judge, {told['spared']} still referred to"
        ),
        (
            f"{told['rows_checked']} rows looked for, {told['rows_missing']} without their object,"
            f" {told['rows_found_again']} there again"
        ),
        *(f"  missing: {url}" for url in told["missing"]),
        *_errors(told),
    ]
    if told["left_for_later"]:
        lines.append(f"{told['left_for_later']} are left for the next pass")
    return lines if told["refused"] is None else [*lines, f"not deleted: {told['refused']}"]


def _errors(told: Mapping[str, Any]) -> list[str]:
    return [f"  {uri}: {why}" for uri, why in told["errors"].items()]


def _plain_lines(lines: list[str]) -> str:
    """Lines without what moves a cursor."""
    return "\n".join(plain(line) for line in lines)


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
