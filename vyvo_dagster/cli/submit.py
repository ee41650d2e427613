"""`vyvo submit`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from vyvo_dagster.cli.connection import Where, client_command
from vyvo_dagster.cli.following import follow, show_result
from vyvo_dagster.cli.output import plain
from vyvo_dagster.domain.job import Priority
from vyvo_dagster.errors import InvalidInput

__all__ = ["parse_pairs", "read_object", "submit"]

_EXAMPLES = """\b
Examples:
  vyvo submit vyvo/digits -i digit=7 -i count=16 --follow
  vyvo submit vyvo/digits --file in.json --priority interactive --output pictures/
  echo '{"digit": 7}' | vyvo submit vyvo/digits --file - --json

A value that is JSON is taken as JSON (7, true, [1,2]), anything else as text;
-i 'note="7"' is the text 7."""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option(
    "-i", "--input", "pairs", multiple=True, metavar="KEY=VALUE", help="One input; repeatable."
)
@click.option(
    "--file", "file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="JSON object with the input, - for stdin; -i goes over it.",
)  # fmt: skip
@click.option("--version", help="Version of the model. [default: the active one]")
@click.option(
    "--priority", type=click.Choice([str(p) for p in Priority]), default="standard",
    show_default=True,
)  # fmt: skip
@click.option("--ttl", type=click.IntRange(1, 7 * 86400), help="Seconds it may wait in the queue.")
@click.option("--webhook", "webhook", help="URL that is told how the job ended.")
@click.option("--idempotency-key", help="The same key never makes a second job within 24 h.")
@click.option(
    "-f", "--follow", "following", is_flag=True, help="Show its progress, then its result."
)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path),
    help="Follow, then save its artifacts in this directory.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on stdout.")
@client_command
def submit(
    where: Where, model: str, pairs: tuple[str, ...], file: Path | None, version: str | None,
    priority: str, ttl: int | None, webhook: str | None, idempotency_key: str | None, following: bool,
    output: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Submit a job to MODEL (owner/name). With --follow the exit status is 0 only if it succeeds."""
    options = {} if webhook is None else {"webhook": {"url": webhook}}
    given = read_object(file) | parse_pairs(pairs)
    with where.client() as client:
        accepted = client.submit(
            model, given, version=version, priority=Priority(priority), ttl_seconds=ttl,
            idempotency_key=idempotency_key, **options,
        )  # fmt: skip
        if following or output is not None:
            click.echo(f"job {accepted.job_id}", err=True)
            return show_result(client, follow(client, accepted.job_id), output, as_json=as_json)
    if as_json:
        click.echo(accepted.model_dump_json())
        return 0
    click.echo(str(accepted.job_id))
    detail = f" ({plain(accepted.detail)})" if accepted.detail else ""
    click.echo(f"{accepted.status}, position {accepted.queue_position}{detail}", err=True)
    return 0


def read_object(file: Path | None) -> dict[str, Any]:
    """The JSON object in a file, `-` for stdin; InvalidInput where there is none."""
    if file is None:
        return {}
    raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    try:
        found = _json(raw.decode())
    except ValueError as error:
        raise InvalidInput(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{file} holds no JSON object")
    return cast("dict[str, Any]", found)


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE options as an object; a value that is JSON is taken as JSON."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InvalidInput(f"-i {pair!r} is not KEY=VALUE")
        if name in values:
            raise InvalidInput(f"-i {name} is given twice")
        try:
            values[name] = _json(text)
        except ValueError:
            values[name] = text
        _sendable(pair, f"-i {name}")
    return values


def _json(text: str) -> Any:
    """Raises ValueError also for what json takes and no request can hold."""
    try:
        found: Any = json.loads(text, parse_constant=_not_a_number)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return found


def _sendable(text: str, what: str) -> None:
    # An argument that the terminal's encoding does not explain comes with lone surrogates.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} is not UTF-8") from error


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
