"""`vyvo keys` and `vyvo audit`: API keys, and what was done with them."""

import json
from datetime import UTC, datetime
from typing import Any

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.durations import Duration
from vyvo_dagster.cli.output import age, plain, seconds, table
from vyvo_dagster.client import Client
from vyvo_dagster.client.access import ApiKey, NewApiKey
from vyvo_dagster.domain.scope import Scope
from vyvo_dagster.errors import InvalidInput, NotFound

__all__ = ["audit", "keys"]

_JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
_LIMIT = click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
_CURSOR = click.option("--cursor", help="Where the page before ended.")
_SCOPES = [str(scope) for scope in Scope if scope is not Scope.NODE]
_YEAR = 366 * 86400


@click.group(
    epilog="\b\nExamples:\n  vyvo keys create gateway --tenant acme --scope jobs:write --expires 90d\n"
    "  vyvo keys ls --tenant acme\n  vyvo keys rotate 0123abcd --overlap 2h\n"
    "  vyvo keys revoke 0123abcd",
)
def keys() -> None:
    """Make, list, rotate and revoke API keys. Needs an admin's key.

    KEY is a key's prefix (the eight digits after vyk_) or its id.
    """


@keys.command()
@click.argument("name")
@click.option("--tenant", required=True, help="Whose key it is.")
@click.option(
    "--scope", "scopes", multiple=True, required=True, type=click.Choice(_SCOPES),
    help="What it may do; once for each.",
)  # fmt: skip
@click.option("--expires", type=Duration(10 * _YEAR), help="Its life, such as 90d; unset: no end.")
@click.option("--rate", type=click.FloatRange(0.01, 1e6), help="Jobs a second.")
@click.option("--burst", type=click.IntRange(1, 1_000_000), help="Jobs at once; goes with --rate.")
@click.option("--max-queued", type=click.IntRange(1, 10_000_000), help="Jobs that may wait.")
@_JSON
@client_command
def create(
    where: Where, name: str, tenant: str, scopes: tuple[str, ...], expires: int | None,
    rate: float | None, burst: int | None, max_queued: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Make a key, and write it to stdout, this once."""
    given = {"rate_per_second": rate, "burst": burst, "max_queued": max_queued}
    limits = {name: value for name, value in given.items() if value is not None}
    with where.client() as client:
        made = client.keys.create(
            name, tenant, list(scopes), expires_in_seconds=expires, limits=limits
        )
    _show_new(made, as_json=as_json)


@keys.command("ls")
@click.option("--prefix", help="Only those whose prefix begins so.")
@click.option("--tenant", help="Only of this tenant.")
@_LIMIT
@_CURSOR
@_JSON
@client_command
def ls(
    where: Where, prefix: str | None, tenant: str | None, limit: int, cursor: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List keys, newest first, without their secrets."""
    with where.client() as client:
        page = client.keys.list(prefix=prefix, tenant=tenant, cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("key", "name", "tenant", "state", "used", "scopes")
    rows = [
        (k.prefix, k.name, k.tenant, _state(k),
         "never" if k.last_used_at is None else f"{age(k.last_used_at)} ago", " ".join(k.scopes))
        for k in page.items
    ]  # fmt: skip
    click.echo(table(head, rows) if rows else "no keys")
    _tell_more(page.next_cursor)


@keys.command()
@click.argument("which", metavar="KEY")
@click.option(
    "--overlap", type=Duration(30 * 86400, least=0),
    help="How long the key before goes on.  [default: 1d]",
)  # fmt: skip
@click.option("--expires", type=Duration(10 * _YEAR), help="Its life; unset: as the one before.")
@_JSON
@client_command
def rotate(
    where: Where, which: str, overlap: int | None, expires: int | None, as_json: bool
) -> None:  # fmt: skip
    """Make a key like KEY, which ends after the overlap; write the new one to stdout, this once."""
    with where.client() as client:
        made = client.keys.rotate(
            _find(client, which).id, overlap_seconds=overlap, expires_in_seconds=expires
        )
    _show_new(made, as_json=as_json)


@keys.command()
@click.argument("which", metavar="KEY")
@client_command
def revoke(where: Where, which: str) -> None:
    """End KEY at once; a repeat changes nothing."""
    with where.client() as client:
        found = _find(client, which)
        client.keys.revoke(found.id)
    click.echo(f"{found.prefix} ({plain(found.name)}) is revoked")


@click.command(
    epilog="\b\nExamples:\n  vyvo audit\n  vyvo audit --action promote --subject vyvo/digits\n"
    "  vyvo audit --key-prefix 0123abcd --json",
)
@click.option("--action", help="Only this, such as promote, drain or key_create.")
@click.option("--subject", help="Only what was done to this: an id or a name.")
@click.option("--key-prefix", help="Only what this key did.")
@_LIMIT
@_CURSOR
@_JSON
@client_command
def audit(
    where: Where, action: str | None, subject: str | None, key_prefix: str | None, limit: int,
    cursor: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List what was done, newest first. Needs an admin's key."""
    with where.client() as client:
        page = client.keys.audit(
            action=action, subject=subject, key_prefix=key_prefix, cursor=cursor, limit=limit
        )
    if as_json:
        click.echo(page.model_dump_json())
        return
    rows = [
        (e.created_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ"), e.key_prefix, e.tenant,
         e.action, e.subject, _short(e.detail))
        for e in page.items
    ]  # fmt: skip
    head = ("when", "key", "tenant", "action", "subject", "detail")
    click.echo(table(head, rows) if rows else "nothing was done")
    _tell_more(page.next_cursor)


def _short(detail: dict[str, Any]) -> str:
    text = json.dumps(detail, ensure_ascii=False) if detail else "-"
    return text if len(text) <= 100 else f"{text[:99]}…"


def _tell_more(cursor: str | None) -> None:
    if cursor is not None:
        click.echo(f"more: --cursor {cursor}", err=True)


def _show_new(made: NewApiKey, *, as_json: bool) -> None:
    if as_json:
        click.echo(made.model_dump_json())
        return
    click.echo(f"{made.prefix} ({plain(made.name)}), {_state(made)}; shown this once:", err=True)
    click.echo(made.key)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "no end"
    left = (key.expires_at - datetime.now(UTC)).total_seconds()
    return "expired" if left <= 0 else f"ends in {seconds(left)}"


def _find(client: Client, key: str) -> ApiKey:
    """A key by its prefix or its id.

    Raises:
        InvalidInput: it looks like neither; a whole key is not repeated in the message.
        NotFound: there is none.
    """
    if len(key) == 36:
        cursor: str | None = None
        while True:
            page = client.keys.list(cursor=cursor, limit=200)
            found = next((k for k in page.items if str(k.id) == key.lower()), None)
            if found is not None:
                return found
            cursor = page.next_cursor
            if cursor is None:
                raise NotFound(f"no key has the id {key}")
    if len(key) != 8 or not set(key) <= set("0123456789abcdef"):
        raise InvalidInput("name the key by its prefix, the eight hex digits after vyk_, or its id")
    found = next(iter(client.keys.list(prefix=key).items), None)
    if found is None:
        raise NotFound(f"no key begins with vyk_{key}")
    return found
