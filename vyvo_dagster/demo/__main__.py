"""Entry point of `make demo`."""

import os
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from vyvo_dagster.client import Client
from vyvo_dagster.client.models import Build
from vyvo_dagster.demo.jobs import run_jobs
from vyvo_dagster.demo.report import Bars, Phases, contact_sheet, jobs_table
from vyvo_dagster.demo.stack import Stack, StackFailed, running_stack
from vyvo_dagster.demo.training import TrainingFailed, trained_weights
from vyvo_dagster.demo.workflow import WorkflowFailed, read_digits, workflow_table
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.job import JobState
from vyvo_dagster.domain.node import AssignmentState, NodeState
from vyvo_dagster.errors import NotFound, VyvoError

MODEL_ID = "vyvo/digits-diffusion"
TEMPLATE = "digits-diffusion"
READER_ID = "vyvo/digit-reader"
READER_TEMPLATE = "digit-reader"
_BUILD_SECONDS = 900
_ASSIGN_SECONDS = 180


class DemoFailed(RuntimeError):
    """A step of the demo did not end well; the message says which."""


def next_version(client: Client, model_id: str = MODEL_ID) -> str:
    """A version name that is not taken yet, so that each demo builds one."""
    try:
        taken = client.versions(model_id, limit=200).items
    except NotFound:
        taken = ()
    return f"v{len(taken) + 1}"


def build(
    client: Client, console: Console, version: str, weights_uri: str | None,
    model_id: str = MODEL_ID, template: str = TEMPLATE,
) -> Build:  # fmt: skip
    """Build the version, showing the log as it comes; the build as it ended."""
    asked = {
        "template": template,
        "runner_name": "digits",
        "model_id": model_id,
        "version": version,
        "env": {},
    }
    submitted = client.submit_build(asked | ({"weights_uri": weights_uri} if weights_uri else {}))
    console.print(f"build {submitted.build_id} is {submitted.status}", highlight=False)
    step = ""
    for event in client.build_log(submitted.build_id):
        if event.kind == "log" and event.data["step"] != step:
            step = event.data["step"]
            console.print(f"  {step:<10} {event.data['text'][:100]}", highlight=False, markup=False)
    ended = client.wait_for_build(submitted.build_id, _BUILD_SECONDS)
    if ended.status != BuildState.SUCCEEDED:
        raise DemoFailed(f"the build ended as {ended.status}: {ended.error}")
    return ended


def assign(client: Client, version: str, model_id: str = MODEL_ID) -> list[str]:
    """Load the version on every ready node and wait for it; the nodes' names."""
    entry = client.version(model_id, version)
    nodes = [node for node in client.nodes().items if node.state == NodeState.READY]
    waiting = {node.id: client.assign(node.id, model_id, entry.id).id for node in nodes}
    deadline = time.monotonic() + _ASSIGN_SECONDS
    while waiting and time.monotonic() < deadline:
        for node_id, assignment_id in list(waiting.items()):
            found = next(a for a in client.node(node_id).assignments if a.id == assignment_id)
            if found.state == AssignmentState.FAILED:
                raise DemoFailed(f"the assignment failed: {found.detail}")
            if found.state == AssignmentState.READY:
                del waiting[node_id]
        time.sleep(0.1)
    if waiting:
        raise DemoFailed(f"the version was not ready on every node within {_ASSIGN_SECONDS} s")
    return [node.name for node in nodes]


def run_workflow(client: Client, stack: Stack, folder: Path, phases: Phases) -> None:
    """Build the second model, and run the workflow of both."""
    console = phases.console
    with phases.phase("build the reader"):
        version = next_version(client, READER_ID)
        build(client, console, version, None, READER_ID, READER_TEMPLATE)
        assign(client, version, READER_ID)
    with phases.phase("run the workflow read-digits"):
        outcome = read_digits(client, folder, console)
    console.print(workflow_table(outcome))
    console.print(
        f"sheet      {outcome.sheet}\nrun        {stack.api}/dagster/runs/{outcome.dagster_run_id}",
        highlight=False,
    )


def demonstrate(stack: Stack, folder: Path, phases: Phases, *, workflow: bool) -> None:
    """All steps on a running stack."""
    console = phases.console

    def epoch(done: int, of: int) -> None:
        if done == of or done % max(of // 10, 1) == 0:
            console.print(f"  epoch {done} of {of}", highlight=False)

    with Client(stack.api, stack.admin_key) as client:
        with phases.phase("train the model (Dagster asset)"):
            weights_uri, metadata, fresh = trained_weights(stack.dagster, epoch)
            console.print(
                f"  weights {weights_uri}{'' if fresh else ' (trained before)'}", highlight=False
            )
            if metadata.get("accuracy") is not None:
                console.print(
                    f"  {float(metadata['accuracy']):.1%} of its samples are read as the digit asked for",
                    highlight=False,
                )
        with phases.phase("build the runner"):
            version = next_version(client)
            built = build(client, console, version, weights_uri)
            console.print(f"  backend {built.backend_used}, image {built.image}", highlight=False)
        with phases.phase("load it on the nodes"):
            console.print(f"  ready on {', '.join(assign(client, version))}", highlight=False)
        with phases.phase("run 12 jobs"), Bars(console) as bars:
            outcomes = run_jobs(client, MODEL_ID, version, folder, bars)
        if workflow:
            run_workflow(client, stack, folder, phases)
    console.print(jobs_table(outcomes))
    sheet = contact_sheet(outcomes, folder / "contact-sheet.png")
    bad = [o for o in outcomes if o.status != JobState.SUCCEEDED or o.png is None]
    if bad:
        raise DemoFailed(f"{len(bad)} of {len(outcomes)} jobs did not succeed: {bad[0].error}")
    console.print(f"pictures   {folder}/\nall of it  {sheet}", highlight=False)


@click.command()
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=Path(".vyvo"), show_default=True
)
@click.option("--workflow", is_flag=True, help="Run a workflow of two models as well.")
@click.option("--keep", is_flag=True, help="Stay up afterwards, until Ctrl-C.")
@click.option("--engine", default="auto", show_default=True, help="auto, docker or process.")
@click.option("--agents", default=2, show_default=True, help="Nodes to start on this machine.")
@click.option("--port", type=int, help="Port of the api.")
@click.option("--dagster-port", type=int, help="Port of the Dagster UI.")
def main(
    data_dir: Path, workflow: bool, keep: bool, engine: str, agents: int, port: int | None,
    dagster_port: int | None,
) -> None:  # fmt: skip
    """Train, build, assign and serve a small diffusion model on this machine."""
    # As wide as the table needs where nobody's terminal says otherwise.
    console = Console(width=None if sys.stdout.isatty() else 150)
    phases = Phases(console)
    if started := os.environ.get("DEMO_STARTED"):
        phases.add("make the environment", time.time() - float(started))
    folder = data_dir / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--engine", engine, "--agents", str(agents)]
    options += [] if port is None else ["--port", str(port)]
    options += [] if dagster_port is None else ["--dagster-port", str(dagster_port)]
    began = time.monotonic()
    try:
        with running_stack(data_dir, options) as stack:
            phases.add("start the stack", time.monotonic() - began)
            demonstrate(stack, folder, phases, workflow=workflow)
            console.print(phases.table())
            console.print(
                f"api        {stack.api}/docs\nDagster    {stack.api}/dagster\nS3         {stack.s3}",
                highlight=False,
            )
            if keep:
                console.print(
                    f"admin key  {stack.admin_key}\nCtrl-C stops it all.", highlight=False
                )
                stack.wait()
    except KeyboardInterrupt:
        console.print("stopped", highlight=False)
        sys.exit(130)
    except (
        DemoFailed,
        StackFailed,
        TrainingFailed,
        WorkflowFailed,
        TimeoutError,
        VyvoError,
    ) as error:
        console.print(f"demo failed: {error}", style="bold red", highlight=False, markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
