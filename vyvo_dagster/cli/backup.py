"""`vyvo backup`: what cannot be made again, into a folder and back."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vyvo_dagster.cli.output import plain
from vyvo_dagster.errors import VyvoError
from vyvo_dagster.settings import S3Settings, Settings

if TYPE_CHECKING:
    from vyvo_dagster.backup.manifest import Manifest
    from vyvo_dagster.backup.site import Site

__all__ = ["backup"]

_FOLDER = click.Path(file_okay=False, path_type=Path)
_DATA_DIR = click.option(
    "--data-dir", type=_FOLDER,
    help="The stack of `vyvo up` on this directory; else the servers that VYVO_* name.",
)  # fmt: skip
_QUIET = click.option("--quiet", is_flag=True, help="Only the end of it.")


@click.group()
def backup() -> None:
    """Back up and restore both databases and all objects. Redis needs neither."""


@backup.command(epilog="\b\nExample:\n  vyvo backup create /backups/$(date +%F)")
@click.argument("folder", type=_FOLDER)
@_DATA_DIR
@_QUIET
def create(folder: Path, data_dir: Path | None, quiet: bool) -> None:
    """Write a backup of a running installation to FOLDER, which must not exist.

    All that was acknowledged before it began is in it.
    """

    def work(progress: Callable[[str], None]) -> "Manifest":
        from vyvo_dagster.backup.create import create_backup

        return create_backup(_site(data_dir), folder, progress)

    _run("create", work, f"backup {folder} is whole", quiet=quiet)


@backup.command(epilog="\b\nExample:\n  vyvo backup check /backups/2026-01-31")
@click.argument("folder", type=_FOLDER)
@_QUIET
def check(folder: Path, quiet: bool) -> None:
    """Read every byte of a backup; needs no server."""

    def work(progress: Callable[[str], None]) -> "Manifest":
        from vyvo_dagster.backup.restore import check_backup

        return check_backup(folder, progress)

    _run("check", work, f"backup {folder} is as it was written", quiet=quiet)


@backup.command(epilog="\b\nExample:\n  vyvo up --servers-only &\n"
                "  vyvo backup restore /backups/2026-01-31 --data-dir .vyvo")  # fmt: skip
@click.argument("folder", type=_FOLDER)
@_DATA_DIR
@_QUIET
def restore(folder: Path, data_dir: Path | None, quiet: bool) -> None:
    """Bring a backup into empty databases and a store. Empties Redis; needs all services stopped."""

    def work(progress: Callable[[str], None]) -> "Manifest":
        from vyvo_dagster.backup.restore import restore_backup

        return restore_backup(_site(data_dir), folder, progress)

    _run("restore", work, f"backup {folder} is restored; start the services", quiet=quiet)


def _site(data_dir: Path | None) -> "Site":
    from vyvo_dagster.backup.site import Site

    if data_dir is not None:
        return Site.on(data_dir)
    settings = Settings()  # pyright: ignore[reportCallIssue]
    dagster = os.environ.get("VYVO_DAGSTER_POSTGRES_URL")
    return Site.of(settings.postgres_dsn, dagster, settings.redis_url, S3Settings())  # pyright: ignore[reportCallIssue]


def _run(
    name: str, work: "Callable[[Callable[[str], None]], Manifest]", done: str, *, quiet: bool
) -> None:
    began = time.monotonic()

    def progress(text: str) -> None:
        if not quiet:
            click.echo(plain(text), err=True)

    try:
        manifest = work(progress)
    except VyvoError as error:
        sys.exit(f"vyvo backup {name}: {plain(' '.join(error.detail.split()))}")
    except ImportError as error:
        sys.exit(f"vyvo backup {name} needs vyvo-dagster[server] ({error})")
    except OSError as error:
        sys.exit(f"vyvo backup {name}: {plain(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)
    click.echo(
        f"{done}: {len(manifest.databases)} databases, {manifest.objects} objects,"
        f" {manifest.object_bytes} bytes, {time.monotonic() - began:.1f} s"
    )
