"""`vyvo nodes`: what nodes there are and what is on them; take them out, load and unload versions."""

import json
import sys
import time
from typing import Any, Final
from uuid import UUID

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.durations import Duration
from vyvo_dagster.cli.output import LiveLine, age, plain, table
from vyvo_dagster.client import Client
from vyvo_dagster.client.models import Assignment, Node, NodeEvent
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.domain.node import AssignmentState, NodeEventKind, NodeState
from vyvo_dagster.errors import InvalidInput, NotFound, Unavailable

__all__ = ["assign", "drain", "nodes"]

_POLL_SECONDS: Final = 1.0
_LONGEST_SECONDS: Final = 7 * 86400
_JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
_NODE = click.argument("node")


@click.group(
    epilog="\b\nExamples:\n  vyvo nodes ls\n  vyvo nodes show gpu-01\n"
    "  vyvo nodes drain gpu-01 --deadline 10m --follow\n"
    "  vyvo nodes assign gpu-02 vyvo/digits@v1 --follow\n  vyvo nodes events gpu-01",
)
def nodes() -> None:
    """Show nodes, take them out of service, load and unload versions.

    NODE is a node's name or its id.
    """


@nodes.command("ls")
@click.option("--state", type=click.Choice([str(s) for s in NodeState]), help="Only in this state.")
@click.option("--limit", type=click.IntRange(1, 200), default=100, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@_JSON
@client_command
def ls(where: Where, state: str | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """List nodes, newest first."""
    with where.client() as client:
        page = client.nodes(state=state, cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("node", "state", "heard", "GPUs", "models", "pool")
    click.echo(table(head, [_row(node) for node in page.items]) if page.items else "no nodes")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def _row(node: Node) -> tuple[object, ...]:
    ready = sum(a.state is AssignmentState.READY for a in node.assignments)
    return (
        node.name, _state(node), f"{age(node.last_heartbeat_at)} ago",
        len(node.capabilities.get("gpus", ())), f"{ready}/{len(node.assignments)} ready",
        node.labels.get("pool", "-"),
    )  # fmt: skip


def _state(node: Node) -> str:
    if node.drain is not None and node.drain.drained_at is not None:
        return f"{node.state}, drained"
    flag = ", draining" if node.draining else ", cordoned" if node.cordoned else ""
    return f"{node.state}{flag}"


@nodes.command()
@_NODE
@_JSON
@client_command
def show(where: Where, node: str, as_json: bool) -> None:
    """Show a node, its GPUs, and what is loaded there."""
    with where.client() as client:
        found = _find(client, node)
    click.echo(found.model_dump_json() if as_json else _described(found))


def _described(node: Node) -> str:
    has = node.capabilities
    lines = [
        ("node", node.name), ("id", node.id), ("state", _state(node)),
        ("heard", f"{age(node.last_heartbeat_at)} ago, its clock is {node.clock_skew_seconds:+.1f} s off"),
        ("host", f"{has.get('hostname', '-')}, {has.get('cpus', '?')} CPUs, {_bytes(has.get('memory_bytes'))}"),
        ("runners", f"{has.get('engine', '-')} {has.get('engine_version') or ''}"),
        ("agent", has.get("agent_version", "-")),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(node.labels.items())) or "-"),
        *(("GPU", _gpu(gpu)) for gpu in has.get("gpus", ())),
        *(("model", _assignment(a)) for a in node.assignments),
    ]  # fmt: skip
    if node.drain is not None:
        lines.append(("drain", _progress(node)))
    return "\n".join(f"{name:<8} {plain(value).rstrip()}" for name, value in lines)


def _gpu(gpu: dict[str, Any]) -> str:
    lost = f", lost: {gpu['lost']}" if gpu.get("lost") else ""
    return f"{gpu.get('index')}: {gpu.get('name')}, {_bytes(gpu.get('memory_bytes'))}{lost}"


def _assignment(a: Assignment) -> str:
    return f"{a.model_id}@{a.version} {a.state}{f': {a.detail}' if a.detail else ''}"


def _bytes(value: Any) -> str:
    return f"{value / 2**30:.1f} GiB" if isinstance(value, int | float) else "-"


@nodes.command()
@_NODE
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: items, next_cursor.")
@client_command
def events(where: Where, node: str, limit: int, cursor: str | None, as_json: bool) -> None:
    """Show a node's history, newest first."""
    with where.client() as client:
        page = client.node_events(_find(client, node).id, cursor=cursor, limit=limit)
    if as_json:
        click.echo(page.model_dump_json())
        return
    rows = [(f"{e.created_at:%Y-%m-%d %H:%M:%S}", e.kind, _detail(e)) for e in page.items]
    click.echo(table(("time (UTC)", "what", "detail"), rows) if rows else "no events")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def _detail(event: NodeEvent) -> str:
    shown = {k: v for k, v in event.detail.items() if v not in (None, [], "")}
    return ", ".join(
        f"{name} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in shown.items()
    )


@nodes.command()
@_NODE
@client_command
def cordon(where: Where, node: str) -> None:
    """Give a node no new jobs; what runs there goes on."""
    with where.client() as client:
        now = client.cordon(_find(client, node).id)
    click.echo(plain(f"{now.name} is {_state(now)}"))


@nodes.command()
@_NODE
@client_command
def uncordon(where: Where, node: str) -> None:
    """Give a node jobs again; ends a drain too."""
    with where.client() as client:
        now = client.uncordon(_find(client, node).id)
    click.echo(plain(f"{now.name} is {_state(now)}"))


@nodes.command(
    epilog="\b\nExamples:\n  vyvo nodes drain gpu-01\n  vyvo nodes drain gpu-01 --deadline 10m --follow"
)
@_NODE
@click.option(
    "--deadline", type=Duration(_LONGEST_SECONDS), metavar="TIME",
    help="Then what still runs is ended and queued again, such as 90s, 10m, 2h.  [default: none]",
)  # fmt: skip
@click.option(
    "-f", "--follow", "--watch", "following", is_flag=True, help="Show what is left, to the end."
)
@_JSON
@client_command
def drain(where: Where, node: str, deadline: int | None, following: bool, as_json: bool) -> None:
    """Take a node out of service: no new jobs, those there end, its models move.

    Without a deadline it waits for the jobs however long they take. `uncordon` takes it back.
    """
    with where.client() as client:
        now = client.drain(_find(client, node).id, deadline_seconds=deadline)
        if following:
            now = _followed(client, now)
    click.echo(now.model_dump_json() if as_json else plain(f"{now.name}: {_progress(now)}"))


def _followed(client: Client, node: Node) -> Node:
    """Show a drain until it is over; the node then."""
    try:
        with LiveLine() as line:
            while node.drain is not None and node.drain.drained_at is None:
                line.show(f"{node.name}: {_progress(node)}")
                time.sleep(_POLL_SECONDS)
                try:
                    node = client.node(node.id)
                except Unavailable as error:
                    line.show(error.detail)
            for event in client.node_events(node.id, limit=20).items:
                if event.kind == NodeEventKind.DRAINING:
                    break
                if event.kind == NodeEventKind.DRAIN_DEADLINE:
                    line.above(f"{event.detail.get('jobs_ended')} jobs were ended at the deadline")
    except KeyboardInterrupt:
        click.echo(f"\nthe drain goes on; see: vyvo nodes show {plain(node.name)}", err=True)
        sys.exit(130)
    return node


def _progress(node: Node) -> str:
    left = node.drain
    if left is None:
        return f"not drained any more, it is {_state(node)}"
    stay = (
        f", no room elsewhere for {', '.join(left.models_to_move)}" if left.models_to_move else ""
    )
    if left.drained_at is not None:
        return f"drained{stay}"
    until = ""
    if left.deadline_at is not None:
        until = f", deadline {left.deadline_at:%H:%M:%S} UTC"
    return (
        f"{left.jobs_left} jobs left, {len(left.models_to_move)} models to move,"
        f" {left.models_loaded} to unload{until}"
    )


@nodes.command(
    epilog="\b\nExamples:\n  vyvo nodes assign gpu-01 vyvo/digits\n"
    "  vyvo nodes assign gpu-01 vyvo/digits@v2 --follow"
)
@_NODE
@click.argument("model")
@click.option("-f", "--follow", "following", is_flag=True, help="Wait until it is ready or failed.")
@_JSON
@client_command
def assign(where: Where, node: str, model: str, following: bool, as_json: bool) -> int:
    """Load MODEL (owner/name, or owner/name@version) on a node.

    Without a version: the one that new jobs get.
    """
    model_id, _, version = model.partition("@")
    with where.client() as client:
        on = _find(client, node)
        made = client.assign(on.id, model_id, version or _serving(client, model_id))
        if following:
            made = _loaded(client, on, made)
    click.echo(made.model_dump_json() if as_json else plain(_assignment(made)))
    return 1 if made.state is AssignmentState.FAILED else 0


def _serving(client: Client, model_id: str) -> str:
    found = client.versions(model_id, limit=200).items
    for state in (VersionState.ACTIVE, VersionState.READY):
        for version in found:
            if version.state is state:
                return version.version
    raise InvalidInput(f"{model_id} has no version that takes jobs; name one: {model_id}@VERSION")


def _loaded(client: Client, node: Node, made: Assignment) -> Assignment:
    try:
        with LiveLine() as line:
            while made.state not in {AssignmentState.READY, AssignmentState.FAILED}:
                line.show(f"{node.name}: {_assignment(made)}")
                time.sleep(_POLL_SECONDS)
                there = [a for a in client.node(node.id).assignments if a.id == made.id]
                if not there:
                    raise NotFound("the assignment was removed meanwhile")
                made = there[0]
    except KeyboardInterrupt:
        click.echo(f"\nit goes on; see: vyvo nodes show {plain(node.name)}", err=True)
        sys.exit(130)
    return made


@nodes.command(
    epilog="\b\nExamples:\n  vyvo nodes unassign gpu-01 vyvo/digits\n"
    "  vyvo nodes unassign gpu-01 vyvo/digits@v2"
)
@_NODE
@click.argument("model")
@client_command
def unassign(where: Where, node: str, model: str) -> None:
    """Unload MODEL (owner/name, owner/name@version, or an assignment's id) from a node.

    Without a version: all versions of it that are loaded there.
    """
    with where.client() as client:
        on = _find(client, node)
        asked = [
            a for a in on.assignments
            if model in {a.model_id, f"{a.model_id}@{a.version}", str(a.id)}
        ]  # fmt: skip
        if not asked:
            raise NotFound(f"{on.name} has no {model}")
        for each in asked:
            click.echo(plain(_assignment(client.unassign(on.id, each.id))))


def _find(client: Client, node: str) -> Node:
    """A node by its name, or by its id."""
    found = client.nodes(name=node, limit=1).items
    if found:
        return found[0]
    try:
        return client.node(UUID(node))
    except ValueError as error:
        raise NotFound(f"no node is named {node}") from error
