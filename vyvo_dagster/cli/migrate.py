"""`vyvo migrate`: the schema and the buckets."""

import sys

import click

from vyvo_dagster.errors import VyvoError
from vyvo_dagster.local.gate import wait_at_gate
from vyvo_dagster.settings import S3Settings, Settings

__all__ = ["migrate"]


@click.command()
def migrate() -> None:
    """Bring the database at VYVO_POSTGRES_DSN to the newest schema and make the S3 buckets.

    Safe to repeat, and to run on several hosts at once.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from vyvo_dagster.objects.store import ObjectStore
    from vyvo_dagster.store.migrate import upgrade

    wait_at_gate()
    settings = Settings()  # pyright: ignore[reportCallIssue]
    try:
        upgrade(settings.postgres_dsn)
        store = ObjectStore(S3Settings(), artifact_ttl_seconds=settings.artifact_ttl_seconds)  # pyright: ignore[reportCallIssue]
        without = store.ensure_buckets()
    except SQLAlchemyError as error:
        sys.exit(f"vyvo migrate: the database at VYVO_POSTGRES_DSN: {str(error).splitlines()[0]}")
    except VyvoError as error:
        sys.exit(f"vyvo migrate: {error.detail}")
    click.echo("schema and buckets are current")
    if without:
        click.echo(
            f"this store takes no lifecycle rules for {', '.join(without)}; the expiry pass deletes"
        )
