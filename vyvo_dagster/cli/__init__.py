"""The `vyvo` command. Each subcommand is imported only when it is called."""

import importlib
from collections.abc import Mapping
from typing import Any

import click

__all__ = ["main"]

# name -> (module, attribute, short help): kept here, so that `vyvo --help` imports none of them.
_COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "submit": ("submit", "submit", "Submit a job; --follow shows its progress and result."),
    "jobs": ("jobs", "jobs", "List jobs."),
    "job": ("jobs", "job", "Show or follow one job."),
    "cancel": ("jobs", "cancel", "Cancel jobs."),
    "artifacts": ("artifacts", "artifacts", "List and save artifacts; collect expired ones."),
    "queue": ("queue", "queue", "Show what waits; --watch refreshes; set weights."),
    "pools": ("pools", "pools", "List, scale and set the policies of node pools."),
    "build": ("builds", "build", "Submit, list, follow, cancel and retry builds."),
    "builds": ("builds", "list_builds", "List builds, as `vyvo build ls`."),
    "logs": ("builds", "logs", "Print or follow a build's log, as `vyvo build logs`."),
    "models": ("models", "models", "The registry: versions, promote, roll back, retire, compare."),
    "requeue": ("jobs", "requeue", "Queue jobs again that have ended badly."),
    "dead-letters": ("jobs", "dead_letters", "List what failed through no fault of its own."),
    "templates": ("templates", "templates", "List, check and start runner templates."),
    "nodes": ("nodes", "nodes", "Show nodes, take them out of service, load and unload versions."),
    "assign": ("nodes", "assign", "Load a version on a node, as `vyvo nodes assign`."),
    "drain": ("nodes", "drain", "Take a node out of service, as `vyvo nodes drain`."),
    "keys": ("keys", "keys", "Make, list, rotate and revoke API keys."),
    "audit": ("keys", "audit", "List what was done, by which key."),
    "workflow": ("workflow", "workflow", "Check, push, run and follow workflows."),
    "backup": ("backup", "backup", "Back up and restore databases and objects."),
    "up": ("up", "up", "Start the whole stack on this machine and stay in the foreground."),
    "api": ("services", "api", "Run the REST api."),
    "orchestrator": ("services", "orchestrator", "Run the orchestrator."),
    "workflow-engine": ("services", "workflow_engine", "Run the workflow engine."),
    "workflow-reporter": (
        "services",
        "workflow_reporter",
        "Tell Dagster of workflow runs, for its UI.",
    ),
    "agent": ("services", "agent", "Run the node agent of this host."),
    "runner": ("services", "runner", "Run one runner, as vyvo-runner@.service asks."),
    "migrate": ("migrate", "migrate", "Bring the database schema and the buckets up to date."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: Any = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vyvo-dagster", prog_name="vyvo")
def main() -> None:
    """Build, place, queue and serve generative models on your own GPU machines."""
