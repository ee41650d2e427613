"""`vyvo models`: the registry of models and their versions."""

import json
from typing import Any

import click

from vyvo_dagster.cli.build_log import ending, follow_build
from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.output import age, plain, table
from vyvo_dagster.client import registry
from vyvo_dagster.client.calls import Call
from vyvo_dagster.client.models import Version
from vyvo_dagster.domain.build import BuildState

__all__ = ["models"]

_JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout.")
_LIMIT = click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
_CURSOR = click.option("--cursor", help="Where the page before ended.")


@click.group()
def models() -> None:
    """The registry: models, their versions, and which of them new jobs get."""


@models.command("ls")
@_LIMIT
@_CURSOR
@_JSON
@client_command
def list_models(where: Where, limit: int, cursor: str | None, as_json: bool) -> None:
    """List models, by id."""
    with where.client() as client:
        page = client.models(cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    rows = [(m.model_id, m.tenant, age(m.created_at), m.description[:60]) for m in page.items]
    click.echo(table(("model", "tenant", "age", "description"), rows) if rows else "no models")
    _more(page.next_cursor)


@models.command()
@click.argument("model")
@_JSON
@client_command
def versions(where: Where, model: str, as_json: bool) -> None:
    """List the versions of MODEL, newest first."""
    with where.client() as client:
        page = client.versions(model)
    if as_json:
        click.echo(page.model_dump_json())
        return
    rows = [
        (v.version, v.state, v.template, age(v.created_at), v.runner_image or "-")
        for v in page.items
    ]
    head = ("version", "state", "template", "age", "image")
    click.echo(table(head, rows) if rows else "no versions")


@models.command()
@click.argument("model")
@click.argument("version")
@client_command
def show(where: Where, model: str, version: str) -> None:
    """Show VERSION of MODEL, as JSON."""
    with where.client() as client:
        click.echo(client.version(model, version).model_dump_json(indent=2))


@models.command()
@click.argument("model")
@click.argument("version")
@client_command
def promote(where: Where, model: str, version: str) -> None:
    """Make VERSION the one that new jobs of MODEL get."""
    _move(where, registry.promote(model, version))


@models.command()
@click.argument("model")
@client_command
def rollback(where: Where, model: str) -> None:
    """Go back to the version of MODEL that was active before."""
    _move(where, registry.rollback(model))


@models.command()
@click.argument("model")
@click.argument("version")
@client_command
def retire(where: Where, model: str, version: str) -> None:
    """Retire VERSION of MODEL for good: no new jobs, no new assignments."""
    _move(where, registry.retire(model, version))


@models.command()
@click.argument("model")
@click.argument("version")
@click.option("-f", "--follow", "following", is_flag=True, help="Show its log, and how it ends.")
@client_command
def rebuild(where: Where, model: str, version: str, following: bool) -> int:
    """Build VERSION of MODEL once more; the same digest changes nothing."""
    with where.client() as client:
        accepted = client.send(registry.rebuild(model, version))
        click.echo(str(accepted.build_id))
        if not following:
            return 0
        ended = follow_build(client, accepted.build_id)
    click.echo(ending(ended), err=True)
    return 0 if ended.status is BuildState.SUCCEEDED else 1


@models.command()
@click.argument("model")
@_LIMIT
@_CURSOR
@_JSON
@client_command
def history(where: Where, model: str, limit: int, cursor: str | None, as_json: bool) -> None:
    """What was done to MODEL, by whom, newest first."""
    with where.client() as client:
        found = client.send(registry.history(model, cursor=cursor, limit=limit))
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = [
        (e["at"], e["by"], e["action"], e["version"] or "-", json.dumps(e["detail"]))
        for e in found["items"]
    ]
    click.echo(table(("at", "by", "action", "version", "detail"), rows) if rows else "no history")
    _more(found["next_cursor"])


@models.command()
@click.argument("model")
@click.argument("first")
@click.argument("second")
@_JSON
@client_command
def diff(where: Where, model: str, first: str, second: str, as_json: bool) -> None:
    """How version SECOND of MODEL differs from version FIRST."""
    with where.client() as client:
        found = client.send(registry.diff(model, first, second))
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, (old, new) in found["fields"].items():
        click.echo(plain(f"{name}: {old} -> {new}"))
    for what in ("env", "resources", "packages"):
        _changes(what, found[what])
    for what in ("input_schema", "output_schema"):
        if found[f"{what}_changed"]:
            click.echo(f"{what} changed")
    if found["same"]:
        click.echo("nothing but the names differs")


def _changes(what: str, found: dict[str, Any] | None) -> None:
    if found is None:
        click.echo(f"{what}: not known of both")
        return
    for name, value in found["added"].items():
        click.echo(plain(f"{what}: + {name} {value}"))
    for name, value in found["removed"].items():
        click.echo(plain(f"{what}: - {name} {value}"))
    for name, (old, new) in found["changed"].items():
        click.echo(plain(f"{what}: {name} {old} -> {new}"))


def _more(cursor: str | None) -> None:
    if cursor is not None:
        click.echo(f"more: --cursor {cursor}", err=True)


def _move(where: Where, call: Call[Version]) -> None:
    """Change the state of a version, and say what it is now."""
    with where.client() as client:
        now = client.send(call)
    click.echo(plain(f"{now.model_id}@{now.version} is {now.state}"))
