"""Whether a Docker engine answers, asked in one request, to say how builds and runners will run."""

import os

import httpx

from vyvo_dagster.settings import EngineChoice

__all__ = ["describe_engine", "found_engine"]

_DEFAULT_HOST = "unix:///var/run/docker.sock"


async def describe_engine(choice: EngineChoice) -> str:
    """One line for a person; `choice` is what `--engine` said."""
    without = "builds make environments, runners are processes"
    if choice == "process":
        return f"process: {without}"
    host = _url()
    if await _answers(host):
        return f"docker at {host}: builds make images, runners are containers"
    if choice == "docker":
        return f"docker is asked for, and {host} does not answer: builds and runners will fail"
    return f"process, as no Docker engine answers at {host}: {without}"


async def found_engine(choice: EngineChoice) -> str | None:
    """URL of the engine that runners are containers of; None where there is none."""
    host = _url()
    return host if choice != "process" and await _answers(host) else None


def _url() -> str:
    return os.environ.get("VYVO_DOCKER_HOST") or os.environ.get("DOCKER_HOST") or _DEFAULT_HOST


async def _answers(host: str) -> bool:
    scheme, _, rest = host.partition("://")
    transport = None
    if scheme == "unix":
        transport = httpx.AsyncHTTPTransport(uds=rest)
    elif scheme != "tcp":
        return False
    url = "http://docker" if scheme == "unix" else f"http://{rest}"
    try:
        async with httpx.AsyncClient(transport=transport, timeout=2.0, trust_env=False) as client:
            return (await client.get(f"{url}/_ping")).status_code == 200
    except (httpx.HTTPError, OSError):
        return False
