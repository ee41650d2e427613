"""A large file up through `vyvo_runner` and down by a presigned URL: time, peak memory, checksum.

    python benchmarks/large_artifact.py --mib 5120

Starts an S3 server of its own. Upload and download each run in a process of their own, whose peak
resident memory the kernel tells at its end.
"""

import argparse
import asyncio
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

_BLOCK: Final = 1 << 20


def main() -> None:
    """Print one line of JSON; status 1 where the checksums differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=5120, help="Size of the file.")
    parser.add_argument("--dir", type=Path, help="Where file and server's data go.")
    parser.add_argument("--upload", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--download", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.upload is not None:
        _say(_upload(given.upload))
    elif given.download is not None:
        _say(_download(given.download))
    else:
        told = asyncio.run(_measure(given.mib, given.dir))
        print(json.dumps(told))
        sys.exit(0 if told["checksum_equal"] else 1)


def _say(told: dict[str, Any]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**told, "peak_mib": round(peak, 1)}))


def _upload(path: Path) -> dict[str, Any]:
    import vyvo_runner

    began = time.monotonic()
    artifact = vyvo_runner.upload(path, "video", filename="film.mp4")
    return {"artifact": artifact, "seconds": round(time.monotonic() - began, 2)}


def _download(url: str) -> dict[str, Any]:
    from vyvo_dagster.client import Client

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, Client("http://127.0.0.1:9", "none") as client:
        path = client.save(url, Path(folder) / "film.mp4")
        seconds = round(time.monotonic() - began, 2)
        with path.open("rb") as file:
            return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "seconds": seconds}


async def _measure(mib: int, folder: Path | None) -> dict[str, Any]:
    from vyvo_dagster.local.parts import start_part
    from vyvo_dagster.local.ports import Ports
    from vyvo_dagster.local.process import stop
    from vyvo_dagster.local.servers import s3
    from vyvo_dagster.objects import ObjectStore
    from vyvo_dagster.settings import S3Settings

    with tempfile.TemporaryDirectory(dir=folder) as home:
        root = Path(home)
        server = s3(root, Ports(root / "ports.json"), access_key="bench", secret_key="bench-secret")
        child = await start_part(server.part, logs=root / "logs")
        try:
            values: dict[str, Any] = {
                "endpoint": server.endpoint, "access_key": server.access_key,
                "secret_key": server.secret_key,
            }  # fmt: skip
            settings = S3Settings(**values)
            store = ObjectStore(settings)
            await asyncio.to_thread(store.ensure_buckets)
            film = root / "film"
            digest = await asyncio.to_thread(_write, film, mib)
            env = {
                **os.environ, "TMPDIR": str(root), "VYVO_S3_ENDPOINT": server.endpoint,
                "VYVO_S3_ACCESS_KEY": server.access_key, "VYVO_S3_SECRET_KEY": server.secret_key,
            }  # fmt: skip
            up = await asyncio.to_thread(_child, env, "--upload", str(film))
            film.unlink()
            url = store.presign_get(up["artifact"]["url"], 3600)
            down = await asyncio.to_thread(_child, env, "--download", url)
            stat = await asyncio.to_thread(store.stat, up["artifact"]["url"])
            return {
                "mib": mib, "upload_seconds": up["seconds"], "upload_peak_mib": up["peak_mib"],
                "download_seconds": down["seconds"], "download_peak_mib": down["peak_mib"],
                "checksum_equal": digest == down["sha256"] == stat.metadata.get("sha256"),
                "size_equal": stat.size_bytes == up["artifact"]["size_bytes"] == mib * _BLOCK,
            }  # fmt: skip
        finally:
            await stop(child)


def _write(path: Path, mib: int) -> str:
    """A file of blocks that differ; its SHA-256."""
    digest, block = hashlib.sha256(), bytearray(os.urandom(_BLOCK))
    with path.open("wb") as file:
        for number in range(mib):
            block[:8] = number.to_bytes(8, "big")
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def _child(env: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], env=env, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told: dict[str, Any] = json.loads(done.stdout)
    return told


if __name__ == "__main__":
    main()
