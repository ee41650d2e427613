"""Which api a client command speaks to, and its errors as one line."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, cast

import click
import httpx

from vyvo_dagster.cli.output import plain
from vyvo_dagster.client import Client, RetryPolicy
from vyvo_dagster.errors import InvalidInput, VyvoError

__all__ = ["Where", "client_command"]

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Where:
    """An api and the key for it."""

    url: str
    key: str

    def client(self) -> Client:
        """A client of it; a person who waits is not kept waiting long."""
        return Client(self.url, self.key, retry=RetryPolicy(retries=3))


def client_command(
    function: Callable[Concatenate[Where, P], int | None],
) -> Callable[..., None]:
    """A command with the options that say which api; what it returns is the exit status.

    An error is one line on stderr and status 1; Ctrl-C is status 130.
    """

    @click.option("--url", envvar="VYVO_API_URL", help="URL of the api. [env: VYVO_API_URL]")
    @click.option(
        "--key",
        envvar="VYVO_API_KEY",
        help="API key; safer in the environment. [env: VYVO_API_KEY]",
    )
    @click.option(
        "--data-dir", type=click.Path(file_okay=False, path_type=Path), default=Path(".vyvo"),
        show_default=True, help="Without --url: the stack that `vyvo up` runs on this directory.",
    )  # fmt: skip
    @functools.wraps(function)
    def command(url: str | None, key: str | None, data_dir: Path, **options: Any) -> None:
        name = click.get_current_context().command_path
        run = cast("Callable[..., int | None]", function)
        try:
            sys.exit(run(_where(url, key, data_dir), **options) or 0)
        except VyvoError as error:
            sys.exit(f"{name}: {_one_line(error.detail)}")
        except (httpx.InvalidURL, UnicodeError) as error:
            # An argument that is not UTF-8, or an artifact's URL that is none.
            sys.exit(f"{name}: what was given cannot be sent: {_one_line(str(error))}")
        except BrokenPipeError:
            raise
        except OSError as error:
            sys.exit(f"{name}: {_one_line(str(error))}")
        except KeyboardInterrupt:
            sys.exit(130)

    return command


def _where(url: str | None, key: str | None, data_dir: Path) -> Where:
    if url is None:
        url = f"http://127.0.0.1:{_of_file(data_dir / 'ports.json', 'api', int)}"
        key = key or _of_file(data_dir / "secrets.json", "admin_key", str)
    try:
        host = httpx.URL(url).host if url.startswith(("http://", "https://")) else ""
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidInput(f"--url {url!r} is no URL: {error}") from error
    if not host:
        raise InvalidInput(f"--url {url!r} is no http or https URL")
    if not key:
        raise InvalidInput("no API key; set VYVO_API_KEY, or give --key")
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("the API key holds characters that no key has")
    return Where(url.rstrip("/"), key)


def _of_file(path: Path, name: str, kind: type[Any]) -> Any:
    try:
        found = json.loads(path.read_text())[name]
    except FileNotFoundError as error:
        raise InvalidInput(
            f"no stack was started on {path.parent} (`vyvo up`); for another api give --url and --key"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{path} does not say where the api is; give --url and --key") from error
    if not isinstance(found, kind):
        raise InvalidInput(f"{path} does not say where the api is; give --url and --key")
    return found


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))
