"""`vyvo build`: submit, ls, show, logs, cancel, retry."""

import re
from collections.abc import Sequence

import click

from vyvo_dagster.cli.build_log import ending, follow_build, print_log
from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.output import age, plain, table
from vyvo_dagster.client import Client, registry
from vyvo_dagster.client.models import Build, BuildAccepted
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import InvalidInput

__all__ = ["build"]

_JSON = click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout.")
_FOLLOW = click.option(
    "-f", "--follow", "following", is_flag=True, help="Show its log, and how it ends."
)


@click.group()
def build() -> None:
    """Submit, list, follow, cancel and retry builds of runner images."""


@build.command(epilog="\b\nExamples:\n  vyvo build submit vyvo/digits v2 --template digits-diffusion"
               " --weights s3://vyvo-model/digits.npz --follow")  # fmt: skip
@click.argument("model")
@click.argument("version")
@click.option("--template", required=True, help="Template of the runner.")
@click.option("--name", help="Name of the runner. [default: that of the model]")
@click.option("--weights", "weights_uri", help="s3://, https:// or hf:// location of the weights.")
@click.option("--repo", help="https URL of the source.")
@click.option("--ref", help="Branch, tag or commit of it. [default: the default branch]")
@click.option(
    "--modality", type=click.Choice(["image", "video", "audio", "text"]), help="What it makes."
)
@click.option("-e", "--env", "pairs", multiple=True, metavar="NAME=VALUE", help="Of the runner.")
@click.option("--base-image", help="Image that it is built on.")
@click.option(
    "--backend", type=click.Choice([str(b) for b in BuildBackend]), help="How it is made."
)
@click.option("--idempotency-key", help="The same key never makes a second build within 24 h.")
@_FOLLOW
@_JSON
@client_command
def submit(
    where: Where, model: str, version: str, template: str, name: str | None,
    weights_uri: str | None, repo: str | None, ref: str | None, modality: str | None,
    pairs: tuple[str, ...], base_image: str | None, backend: str | None,
    idempotency_key: str | None, following: bool, as_json: bool,
) -> int:  # fmt: skip
    """Build VERSION of MODEL (owner/name). With --follow the exit status is 0 only if it succeeds."""
    given = {
        "weights_uri": weights_uri, "repo": repo, "ref": ref, "modality": modality,
        "base_image": base_image, "backend": backend,
    }  # fmt: skip
    body = {
        "template": template, "model_id": model, "version": version,
        "runner_name": name or re.sub(r"[^A-Za-z0-9._-]", "-", model.rpartition("/")[2])[:63],
        "env": _env(pairs), **{k: v for k, v in given.items() if v is not None},
    }  # fmt: skip
    with where.client() as client:
        accepted = client.submit_build(body, idempotency_key=idempotency_key)
        return _accepted(client, accepted, following=following, as_json=as_json)


@build.command("ls")
@click.option("--status", type=click.Choice([str(s) for s in BuildState]), help="In this state.")
@click.option("--model", "model_id", help="Only of this model (owner/name).")
@click.option("--limit", type=click.IntRange(1, 200), default=20, show_default=True)
@click.option("--cursor", help="Where the page before ended.")
@_JSON
@client_command
def list_builds(
    where: Where, status: str | None, model_id: str | None, limit: int, cursor: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List builds, newest first."""
    call = registry.builds(status=status, model_id=model_id, cursor=cursor, limit=limit)
    with where.client() as client:
        page = client.send(call)
    if as_json:
        click.echo(page.model_dump_json())
        return
    head = ("build", "status", "model", "template", "host", "age", "took", "error")
    click.echo(table(head, [_row(each) for each in page.items]) if page.items else "no builds")
    if page.next_cursor is not None:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


@build.command()
@click.argument("build_id", type=click.UUID)
@_JSON
@client_command
def show(where: Where, build_id: object, as_json: bool) -> None:
    """Show a build."""
    with where.client() as client:
        found = client.build(str(build_id))
    if as_json:
        click.echo(found.model_dump_json())
        return
    durations = ", ".join(f"{name} {took:g} s" for name, took in found.durations.items())
    rows = [
        ("build", found.build_id), ("status", found.status),
        ("model", f"{found.model_id}@{found.version}"), ("template", found.template),
        ("backend", found.backend_used or found.backend), ("host", found.host or "-"),
        ("attempt", found.attempt), ("image", found.image or "-"),
        ("unchanged", "yes" if found.unchanged else "no"), ("lock", found.lock_sha256 or "-"),
        ("log", found.log_url or "-"), ("took", age(found.started_at, found.finished_at)),
        ("durations", durations or "-"), ("error", found.error or "-"),
    ]  # fmt: skip
    for name, value in rows:
        click.echo(plain(f"{name:10} {value}"))


@build.command()
@click.argument("build_id", type=click.UUID)
@_FOLLOW
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each line of the log.")
@client_command
def logs(where: Where, build_id: object, following: bool, as_json: bool) -> int:
    """Print a build's log. With -f the exit status is 0 only if the build succeeds."""
    with where.client() as client:
        if not following:
            print_log(client, str(build_id), as_json=as_json)
            return 0
        ended = follow_build(client, str(build_id), as_json=as_json)
    click.echo(ending(ended), err=True)
    return 0 if ended.status is BuildState.SUCCEEDED else 1


@build.command()
@click.argument("build_id", type=click.UUID)
@client_command
def cancel(where: Where, build_id: object) -> None:
    """Cancel a build; a repeat changes nothing."""
    with where.client() as client:
        found = client.send(registry.cancel_build(str(build_id)))
    click.echo(f"build {found.build_id} is {found.status}")


@build.command()
@click.argument("build_id", type=click.UUID)
@_FOLLOW
@_JSON
@client_command
def retry(where: Where, build_id: object, following: bool, as_json: bool) -> int:
    """Build again what a failed or canceled build asked for."""
    with where.client() as client:
        accepted = client.send(registry.retry_build(str(build_id)))
        return _accepted(client, accepted, following=following, as_json=as_json)


def _accepted(client: Client, accepted: BuildAccepted, *, following: bool, as_json: bool) -> int:
    if not following:
        click.echo(accepted.model_dump_json() if as_json else str(accepted.build_id))
        return 0
    click.echo(f"build {accepted.build_id}", err=True)
    ended = follow_build(client, accepted.build_id, as_json=as_json)
    click.echo(ending(ended), err=True)
    if as_json:
        click.echo(ended.model_dump_json())
    return 0 if ended.status is BuildState.SUCCEEDED else 1


def _row(each: Build) -> tuple[object, ...]:
    error = " ".join((each.error or "").split())
    return (
        each.build_id, each.status, f"{each.model_id}@{each.version}", each.template,
        each.host or "-", age(each.created_at), age(each.started_at, each.finished_at),
        error if len(error) <= 60 else error[:57] + "...",
    )  # fmt: skip


def _env(pairs: Sequence[str]) -> dict[str, str]:
    env: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidInput("-e is not NAME=VALUE")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"-e {name} is not UTF-8") from error
        env[name] = value
    return env
