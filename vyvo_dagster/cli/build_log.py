"""A build's log, followed by a person to its end."""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any
from uuid import UUID

import click

from vyvo_dagster.cli.output import LiveLine, plain, seconds
from vyvo_dagster.client import Client
from vyvo_dagster.client.models import Build
from vyvo_dagster.domain.build import BuildState

__all__ = ["ending", "follow_build", "print_log"]


def follow_build(client: Client, build_id: UUID | str, *, as_json: bool = False) -> Build:
    """Show the log as it is written, and on a terminal the step under way; the build as it ended."""
    began = time.monotonic()
    try:
        with LiveLine() as line, closing(client.build_log(build_id)) as events:
            for event in events:
                if event.kind != "log":
                    continue
                if as_json:
                    click.echo(json.dumps(event.data))
                    continue
                click.echo(_text(event.data)) if not sys.stderr.isatty() else line.above(
                    _text(event.data)
                )
                took = seconds(time.monotonic() - began)
                line.show(f"{event.data.get('step') or 'build'}  {took}", step=False)
    except KeyboardInterrupt:
        click.echo(
            f"\nthe build goes on; follow it again with: vyvo build logs {build_id} -f", err=True
        )
        sys.exit(130)
    return client.build(build_id)


def print_log(client: Client, build_id: UUID | str, *, as_json: bool) -> None:
    """Print what there is of the log, and do not wait for more."""
    offset = 0
    while True:
        found: Any = client.request(
            "GET", f"/api/builds/{build_id}", params={"log_offset": offset, "log_limit": 1000}
        )
        log: Mapping[str, Any] = found.get("log") or {}
        lines = log.get("lines") or []
        for each in lines:
            click.echo(json.dumps(each) if as_json else _text(each))
        if not lines:
            return
        offset = int(log["next_offset"])


def ending(build: Build) -> str:
    """How a build ended, in a line."""
    took = ""
    if build.started_at is not None and build.finished_at is not None:
        took = f" after {seconds((build.finished_at - build.started_at).total_seconds())}"
    if build.status is BuildState.SUCCEEDED:
        what = "nothing has changed" if build.unchanged else f"{build.model_id}@{build.version}"
        return plain(f"build {build.build_id} has succeeded{took}: {what}, {build.image}")
    why = f": {' '.join((build.error or '').split())}" if build.error else ""
    return plain(f"build {build.build_id} is {build.status}{took}{why}")


def _text(line: Mapping[str, Any]) -> str:
    step = line.get("step")
    return plain(f"[{step}] {line.get('text')}" if step else str(line.get("text")))
