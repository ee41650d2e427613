"""`vyvo up`: the whole stack on one machine."""

import sys
from pathlib import Path
from typing import get_args

import click

from vyvo_dagster.settings import EngineChoice

__all__ = ["up"]

_PORT = click.IntRange(1, 65535)


@click.command()
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".vyvo"),
    show_default=True,
    help="Holds all data, secrets and logs of the stack.",
)
@click.option("--port", type=_PORT, help="Port of the api. [default: as last time, or 8080]")
@click.option(
    "--dagster-port", type=_PORT, help="Port of Dagster's UI. [default: as last time, or 3000]"
)
@click.option("--grpc-port", type=_PORT, help="Serve gRPC there too. [default: off]")
@click.option("--no-dagster", is_flag=True, help="Without Dagster: no builds, jobs still run.")
@click.option(
    "--servers-only", is_flag=True, help="PostgreSQL, Redis and S3 alone, to restore a backup."
)
@click.option(
    "--engine",
    type=click.Choice(get_args(EngineChoice)),
    default="auto",
    show_default=True,
    help="Whether builds and runners use containers.",
)
@click.option(
    "--agents",
    type=click.IntRange(0, 64),
    default=1,
    show_default=True,
    help="Node agents to start on this machine.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON once everything answers."
)
def up(
    *,
    data_dir: Path,
    port: int | None,
    dagster_port: int | None,
    grpc_port: int | None,
    no_dagster: bool,
    servers_only: bool,
    engine: EngineChoice,
    agents: int,
    as_json: bool,
) -> None:
    """Start PostgreSQL, Redis, S3, api, orchestrator, agents and Dagster, and keep them running.

    Ctrl-C stops all of it and leaves no process; the next start finds everything again.
    """
    try:
        from vyvo_dagster.local.up import UpOptions
        from vyvo_dagster.local.up import up as run_stack
    except ImportError as error:
        sys.exit(f"vyvo up needs the embedded servers; install vyvo-dagster[local] ({error})")
    options = UpOptions(
        data_dir=data_dir,
        port=port,
        dagster_port=dagster_port,
        grpc_port=grpc_port,
        dagster=not (no_dagster or servers_only),
        servers_only=servers_only,
        engine=engine,
        agents=0 if servers_only else agents,
        as_json=as_json,
    )
    sys.exit(run_stack(options))
