"""The services: each reads its settings from the environment and runs until a signal."""

from pathlib import Path

import click

from vyvo_dagster.local.gate import wait_at_gate

__all__ = ["agent", "api", "orchestrator", "runner", "workflow_engine", "workflow_reporter"]


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
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File of VYVO_AGENT_* variables, one NAME=value a line; the environment goes before it.",
)  # fmt: skip
def agent(config: Path | None) -> None:
    r"""Run the node agent of this host until SIGTERM.

    Settings are VYVO_AGENT_* variables, of the environment or of one file; .env.example explains each.
    A first start joins by VYVO_AGENT_JOIN_TOKEN and keeps a credential of its own in
    VYVO_AGENT_DATA_DIR; later starts need no token. Jobs are handed back when it stops.

    \b
    Examples:
      vyvo agent --config /etc/vyvo/agent.env
      VYVO_AGENT_API_URL=https://vyvo.example VYVO_AGENT_JOIN_TOKEN=... vyvo agent
      VYVO_AGENT_ENGINE=process VYVO_AGENT_LABELS='{"pool": "a100"}' vyvo agent
      systemctl enable --now vyvo-agent        (deploy/systemd)
    """
    from vyvo_dagster.agent.main import run

    wait_at_gate()
    run(config)


@click.command()
def runner() -> None:
    """Run one runner until SIGTERM, set by the VYVO_RUNNER_* variables.

    An agent with VYVO_AGENT_RUNNERS=systemd writes these into the environment file of
    vyvo-runner@.service, which calls this command; there is no other use of it.
    """
    from vyvo_dagster.agent.runners.unit_main import run

    run()
