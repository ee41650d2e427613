"""The services: each reads its settings from the environment and runs until a signal."""

import click

from vyvo_dagster.local.gate import wait_at_gate

__all__ = ["agent", "api", "orchestrator", "workflow_engine", "workflow_reporter"]


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
def workflow_engine() -> None:
    """Run the workflow engine: drives workflow runs from their rows; several may run."""
    from vyvo_dagster.execution.workflow_engine import run

    wait_at_gate()
    run()


@click.command()
def workflow_reporter() -> None:
    """Tell Dagster of workflow runs and their steps; several may run, one works at a time."""
    from vyvo_dagster.execution.workflows.main import run

    wait_at_gate()
    run()


@click.command()
def agent() -> None:
    """Run the node agent of this host, set by the VYVO_AGENT_* variables."""
    from vyvo_dagster.agent.main import run

    wait_at_gate()
    run()
