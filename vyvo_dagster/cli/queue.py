"""`vyvo queue`: what waits, refreshed in place, and the weights by which tenants share slots."""

import sys
import time

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.output import plain, seconds, table
from vyvo_dagster.client import Client
from vyvo_dagster.client.models import Queues
from vyvo_dagster.errors import InvalidInput, Unavailable

__all__ = ["queue"]

_CLEAR = "\x1b[H\x1b[2J"


@click.group(
    invoke_without_command=True,
    epilog="\b\nExamples:\n  vyvo queue\n  vyvo queue show --watch 1\n"
    "  vyvo queue set-weight acme 4\n  vyvo queue set-weight acme 2 --model vyvo/digits",
)
@click.pass_context
def queue(context: click.Context) -> None:
    """Show what waits, and set the weights by which tenants share slots.

    Without a command: `show`.
    """
    if context.invoked_subcommand is None:
        # By its own parser, so that it reads the environment as `queue show` does.
        show.main([], prog_name=f"{context.command_path} show")


@queue.command()
@click.option("--model", "model_id", help="Only of this model (owner/name).")
@click.option("--limit", type=click.IntRange(1, 1000), default=200, show_default=True)
@click.option(
    "-w", "--watch", type=click.FloatRange(0.2, 3600), is_flag=False, flag_value=2.0,
    metavar="SECONDS", help="Show it again every so many seconds, until Ctrl-C.  [default: 2]",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One line of JSON, at each time.")
@client_command
def show(
    where: Where, model_id: str | None = None, limit: int = 200, watch: float | None = None,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Depth, age of the oldest, jobs in flight and weight, by version, class and tenant."""
    live = watch is not None and not as_json and sys.stdout.isatty()
    with where.client() as client:
        while True:
            text = _text(client, model_id, limit, as_json=as_json, patient=watch is not None)
            click.echo(f"{_CLEAR}{text}" if live else text)
            if watch is None:
                return
            time.sleep(watch)


def _text(
    client: Client, model_id: str | None, limit: int, *, as_json: bool, patient: bool
) -> str:  # fmt: skip
    try:
        found = client.queue(model_id=model_id, limit=limit)
    except Unavailable as error:
        if not patient:
            raise
        return plain(error.detail)
    return found.model_dump_json() if as_json else _shown(found)


def _shown(found: Queues) -> str:
    if not found.items:
        return "nothing waits and nothing runs"
    head = ("model", "priority", "tenant", "waiting", "oldest", "in flight", "weight")
    rows = [
        (f"{q.model_id}@{q.version}", q.priority, q.tenant, q.depth, seconds(q.oldest_seconds),
         q.in_flight, f"{q.weight:g}")
        for q in found.items
    ]  # fmt: skip
    waiting = sum(q.depth for q in found.items)
    total = f"{waiting} waiting, {sum(q.in_flight for q in found.items)} in flight"
    more = "; there are more queues: --limit" if found.truncated else ""
    return f"{table(head, rows)}\n{total}{more}"


@queue.command("weights")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
@client_command
def weights(where: Where, as_json: bool) -> None:
    """List the weights that were set; a tenant that has none weighs 1."""
    with where.client() as client:
        found = client.weights()
    if as_json:
        click.echo("[" + ", ".join(w.model_dump_json() for w in found) + "]")
        return
    rows = [(w.tenant, w.model_id or "all", f"{w.weight:g}") for w in found]
    click.echo(table(("tenant", "model", "weight"), rows) if rows else "no weights are set")


@queue.command("set-weight")
@click.argument("tenant")
@click.argument("weight", type=click.FloatRange(0.001, 1000))
@click.option("--model", "model_id", help="For this model only (owner/name).")
@client_command
def set_weight(where: Where, tenant: str, weight: float, model_id: str | None) -> None:
    """Give a tenant's jobs WEIGHT shares of the slots. Needs an admin's key."""
    if weight != weight:  # noqa: PLR0124 - nan passes every range
        raise InvalidInput("the weight is no number")
    with where.client() as client:
        now = client.set_weight(tenant, weight, model_id=model_id)
    click.echo(f"{plain(now.tenant)} weighs {now.weight:g} for {now.model_id or 'all models'}")


@queue.command("unset-weight")
@click.argument("tenant")
@click.option("--model", "model_id", help="The one for this model (owner/name).")
@client_command
def unset_weight(where: Where, tenant: str, model_id: str | None) -> None:
    """Forget a weight: the tenant weighs as for all models then, or 1."""
    with where.client() as client:
        client.delete_weight(tenant, model_id=model_id)
