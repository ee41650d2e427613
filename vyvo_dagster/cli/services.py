"""The services: each reads its settings from the environment and runs until a signal."""

import click

from vyvo_dagster.local.gate import wait_at_gate

__all__ = ["agent", "api", "orchestrator"]


@click.command()
def api() -> None:
    """Run the REST api, set by the VYVO_* variables that .env.example explains."""
    from api.server import run

    wait_at_gate()
    run()


@click.command()
def orchestrator() -> None:
    """Run the orchestrator: claims jobs, places them on nodes, gives lost ones back."""
    from vyvo_dagster.dispatch.main import run

    wait_at_gate()
    run()


@click.command()
def agent() -> None:
    """Run the node agent of this host, set by the VYVO_AGENT_* variables."""
    from vyvo_dagster.agent.main import run

    wait_at_gate()
    run()
