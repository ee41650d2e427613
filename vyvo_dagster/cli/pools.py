"""`vyvo pools`: pools of nodes, their sizes, and the policies that follow their queues."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.output import LiveLine, age, plain, table
from vyvo_dagster.client import Client
from vyvo_dagster.client.models import Pool, PoolOperation
from vyvo_dagster.domain.pool import OperationState
from vyvo_dagster.errors import InvalidInput, Unavailable

__all__ = ["pools"]

_POLL_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 60.0
_SIZE: Final = click.IntRange(0, 1024)
_SECONDS: Final = click.IntRange(0, 86400)
_BODY: Final = (
    "min_size", "max_size", "queue_depth_target", "cool_down_seconds", "drain_seconds",
    "join_seconds",
)  # fmt: skip


@click.group(
    epilog="\b\nExamples:\n  vyvo pools ls\n  vyvo pools put gpu-a100 pool.json\n"
    "  vyvo pools scale gpu-a100 4 --dry-run\n  vyvo pools scale gpu-a100 --by -1\n"
    "  vyvo pools policy gpu-a100 --min 1 --max 8 --target 20"
)
def pools() -> None:
    """List, scale and set the policies of node pools."""


@pools.command("ls", epilog="\b\nExample:\n  vyvo pools ls --json | jq '.items[].name'")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: items, next_cursor.")
@client_command
def browse(where: Where, limit: int, cursor: str | None, as_json: bool) -> None:
    """List pools: their nodes, their bounds, and what their policies want."""
    with where.client() as client:
        page = client.pools(cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("pool", "scaler", "nodes", "ready", "busy", "bounds", "waiting", "policy")
    rows = [
        (p.name, p.scaler.get("kind", "?"), p.size, sum(m.ready for m in p.members),
         sum(m.running > 0 for m in p.members), f"{p.min_size}-{p.max_size}", p.policy.waiting,
         _wants(p))
        for p in page.items
    ]  # fmt: skip
    click.echo(table(head, rows) if rows else "no node pools")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


@pools.command(epilog="\b\nExample:\n  vyvo pools show gpu-a100")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@client_command
def show(where: Where, name: str, as_json: bool) -> None:
    """Show a pool with its nodes and its last changes."""
    with where.client() as client:
        pool = client.pool(name)
        if as_json:
            click.echo(pool.model_dump_json())
            return
        changes = client.pool_operations(name, limit=5).items
    lines = [
        ("pool", pool.name), ("scaler", json.dumps(pool.scaler)), ("host", pool.host or ""),
        *_policy(pool), ("joins in", f"{pool.join_seconds} s"),
        ("drains in", f"{pool.drain_seconds} s"),
        *(("node", f"{m.name}: {_state(m.ready, m.cordoned)}, runs {m.running}")
          for m in pool.members),
        *(("change", _changed(c)) for c in changes),
    ]  # fmt: skip
    click.echo(_lines(lines))


@pools.command(epilog="\b\nExamples:\n  vyvo pools scale gpu-a100 4 --dry-run\n"
               "  vyvo pools scale gpu-a100 4\n  vyvo pools scale gpu-a100 --by -1")  # fmt: skip
@click.argument("name")
@click.argument("size", type=_SIZE, required=False)
@click.option("--by", "delta", type=click.IntRange(-1024, 1024), help="So many more, or fewer.")
@click.option("--dry-run", is_flag=True, help="Say what it would do, and do nothing.")
@click.option("--no-follow", is_flag=True, help="Ask for it, and do not wait.")
@click.option("--idempotency-key", help="The same key never asks for a second change within 24 h.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout: the operation.")
@client_command
def scale(
    where: Where, name: str, size: int | None, delta: int | None, dry_run: bool, no_follow: bool,
    idempotency_key: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Change a pool's size and follow it: its log on stderr, such as Terraform's plan.

    Nodes that leave are drained first. The exit status is 0 only if it succeeds.
    """
    if (size is None) == (delta is None):
        raise InvalidInput("give either a size or --by")
    with where.client() as client:
        asked = client.scale_pool(
            name, size=size, delta=delta, dry_run=dry_run, idempotency_key=idempotency_key
        )
        if no_follow:
            click.echo(asked.model_dump_json() if as_json else str(asked.id))
            return 0
        return _result(_followed(client, name, asked.id), as_json=as_json)


@pools.command(epilog="\b\nExample:\n  vyvo pools follow gpu-a100 $OPERATION")
@click.argument("name")
@click.argument("operation_id", type=click.UUID)
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout: the operation.")
@client_command
def follow(where: Where, name: str, operation_id: UUID, as_json: bool) -> int:
    """Follow a change of a pool to its end. The exit status is 0 only if it succeeds."""
    with where.client() as client:
        return _result(_followed(client, name, operation_id), as_json=as_json)


@pools.command(epilog="\b\nExamples:\n  vyvo pools policy gpu-a100\n"
               "  vyvo pools policy gpu-a100 --min 1 --max 8 --target 20 --cool-down 300\n"
               "  vyvo pools policy gpu-a100 --target off")  # fmt: skip
@click.argument("name")
@click.option("--min", "min_size", type=_SIZE, help="Least number of nodes.")
@click.option("--max", "max_size", type=_SIZE, help="Greatest number of nodes.")
@click.option("--target", metavar="JOBS|off", help="Waiting jobs meant for one node.")
@click.option("--cool-down", "cool_down_seconds", type=_SECONDS, help="Seconds between changes.")
@click.option("--drain", "drain_seconds", type=_SECONDS, help="Seconds a leaving node may go on.")
@click.option("--join", "join_seconds", type=click.IntRange(1, 86400), help="Seconds to join.")
@click.option("--model", "models", multiple=True, help="Whose jobs count; repeatable.")
@click.option("--all-models", is_flag=True, help="Let the jobs of all models count.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: the pool.")
@client_command
def policy(
    where: Where, name: str, target: str | None, models: tuple[str, ...], all_models: bool,
    as_json: bool, **bounds: int | None,
) -> None:  # fmt: skip
    """Show a pool's policy and what it would do now, or change it."""
    changes: dict[str, Any] = {n: value for n, value in bounds.items() if value is not None}
    if target is not None:
        changes["queue_depth_target"] = _target(target)
    if models and all_models:
        raise InvalidInput("give either --model or --all-models")
    if models or all_models:
        changes["models"] = list(models)
    with where.client() as client:
        pool = client.pool(name)
        if changes:
            before = pool.model_dump(mode="json", include={*_BODY, "models", "scaler"})
            pool = client.put_pool(name, before | changes)
    click.echo(pool.model_dump_json() if as_json else _lines(_policy(pool)))


@pools.command(epilog="\b\nExample:\n  echo '{\"max_size\": 4, \"scaler\": {\"kind\": \"local\"}}'"
               " | vyvo pools put gpu-a100 -")  # fmt: skip
@click.argument("name")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@client_command
def put(where: Where, name: str, file: Path) -> None:
    """Make a pool of a JSON object, or replace all of one but its nodes; - is stdin."""
    try:
        body = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text())
    except ValueError as error:
        raise InvalidInput(f"{file} is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidInput(f"{file} holds no JSON object")
    with where.client() as client:
        click.echo(_lines(_policy(client.put_pool(name, body))))


def _followed(client: Client, name: str, operation_id: UUID) -> PoolOperation:
    """Show an operation's log as it grows; the operation as it ended."""
    offset, rest, lost_at = 0, "", 0.0
    try:
        with LiveLine() as line:
            while True:
                try:
                    now = client.pool_operation(name, operation_id, log_offset=offset)
                except Unavailable as error:
                    # The operation goes on without us, and without the api that was asked.
                    lost_at = lost_at or time.monotonic()
                    if time.monotonic() - lost_at > _PATIENCE_SECONDS:
                        raise
                    line.show(f"waiting for the api: {error.detail}")
                    time.sleep(_POLL_SECONDS)
                    continue
                lost_at = 0.0
                offset += len(now.log)
                *whole, rest = (rest + now.log).split("\n")
                for text in whole:
                    line.above(f"  {text}")
                line.show(f"{now.status}, from {now.from_size} to {now.size} nodes")
                if now.ended:
                    if rest:
                        line.above(f"  {rest}")
                    return now
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        again = f"vyvo pools follow {name} {operation_id}"
        click.echo(f"\nthe change goes on; follow it again with: {again}", err=True)
        sys.exit(130)


def _result(ended: PoolOperation, *, as_json: bool) -> int:
    if as_json:
        click.echo(ended.model_dump_json())
    elif ended.status is OperationState.SUCCEEDED:
        click.echo(
            _planned(ended.plan) if ended.dry_run else f"{ended.pool} has {ended.size} nodes"
        )
    if ended.status is OperationState.SUCCEEDED:
        return 0
    why = f"{ended.error_code}: {ended.error}" if ended.error else ended.status
    click.echo(plain(f"the change of {ended.pool} has {ended.status}: {why}"), err=True)
    return 1


def _planned(plan: Mapping[str, Any]) -> str:
    """What an operation would do, a line for each kind of it."""
    found = [(kind, plan.get(kind)) for kind in ("keep", "add", "remove")]
    return _lines([(kind, ", ".join(map(str, names or ())) or "none") for kind, names in found])


def _policy(pool: Pool) -> list[tuple[str, object]]:
    target = pool.queue_depth_target
    return [
        ("nodes", f"{pool.size}, of {pool.min_size} to {pool.max_size}"),
        ("target", f"{target} waiting jobs to a node" if target else "off"),
        ("cool down", f"{pool.cool_down_seconds} s"),
        ("models", ", ".join(pool.models) or "all"),
        ("waiting", pool.policy.waiting), ("wants", _wants(pool)),
    ]  # fmt: skip


def _changed(made: PoolOperation) -> str:
    how = f"{made.from_size} to {made.size}{' (dry run)' if made.dry_run else ''}, {made.status}"
    why = made.error or made.reason
    return f"{made.id} {how}, {age(made.created_at)} ago, {made.requested_by}: {why}"


def _wants(pool: Pool) -> str:
    change = "stay" if pool.policy.size == pool.size else f"{pool.policy.size} nodes"
    return f"{change}: {pool.policy.reason}"


def _state(ready: bool, cordoned: bool) -> str:
    return ("ready" if ready else "not ready") + (", cordoned" if cordoned else "")


def _target(text: str) -> int | None:
    if text == "off":
        return None
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 7 and int(text)):
        raise InvalidInput(f"--target {text!r} is neither a number of jobs nor off")
    return int(text)


def _lines(found: Sequence[tuple[str, object]]) -> str:
    return "\n".join(f"{name:<10} {plain(value)}" for name, value in found if value != "")
