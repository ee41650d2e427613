"""Which installation is backed up or restored: its databases, its object store, its Redis."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.local.ports import LOOPBACK
from vyvo_dagster.local.postgres import postgres_dsn
from vyvo_dagster.settings import S3Settings

__all__ = ["DAGSTER", "REGISTRY", "Site"]

REGISTRY: Final = "registry"
DAGSTER: Final = "dagster"


@dataclass(frozen=True, slots=True)
class Site:
    """One installation.

    `databases` are libpq URLs by name: the registry first, since what Dagster knows beyond it does no
    harm, and the other way round events would be lost.
    """

    databases: dict[str, str]
    redis_url: str
    s3: S3Settings

    @classmethod
    def of(cls, registry: str, dagster: str | None, redis_url: str, s3: S3Settings) -> "Site":
        """From URLs as the settings have them; `dagster` may name a driver."""
        databases = {REGISTRY: registry}
        if dagster is not None:
            databases[DAGSTER] = dagster.replace("postgresql+psycopg2://", "postgresql://", 1)
        return cls(databases, redis_url, s3)

    @classmethod
    def on(cls, data_dir: Path) -> "Site":
        """The stack that `vyvo up` runs on a data directory.

        Raises:
            InvalidInput: none was ever started there.
        """
        ports, secrets = _read(data_dir / "ports.json"), _read(data_dir / "secrets.json")
        try:
            password, port = str(secrets["postgres_password"]), int(ports["postgres"])
            values: dict[str, Any] = {
                "endpoint": f"http://{LOOPBACK}:{int(ports['s3'])}",
                "access_key": secrets["s3_access_key"],
                "secret_key": secrets["s3_secret_key"],
            }
            redis_url = f"redis://:{secrets['redis_password']}@{LOOPBACK}:{int(ports['redis'])}/0"
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{data_dir} does not say where its servers are: {error}") from error
        databases = {
            name: postgres_dsn(port, password, database)
            for name, database in ((REGISTRY, "vyvo"), (DAGSTER, "dagster"))
        }
        return cls(databases, redis_url, S3Settings(**values))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InvalidInput(
            f"no stack was started on {path.parent} (`vyvo up --servers-only` starts its servers)"
        ) from error
    except ValueError as error:
        raise InvalidInput(f"{path} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}
