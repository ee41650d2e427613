"""How the parts that are ours, and Dagster's, are found to answer."""

import asyncio
import contextlib
from datetime import datetime
from typing import Any

import httpx

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local.parts import Probe
from vyvo_dagster.local.ports import LOOPBACK
from vyvo_dagster.local.process import Child

__all__ = [
    "accepts_connections",
    "answers_ok",
    "daemon_beats",
    "ended_well",
    "location_is_loaded",
    "log_says",
    "node_is_ready",
]


async def ended_well(_: Child) -> None:
    """For one-shot parts: only their end says that they are done."""
    raise Unavailable("it has not ended")


def answers_ok(url: str) -> Probe:
    """GET of `url` answers 200."""

    async def probe(_: Child) -> None:
        await _request("GET", url)

    return probe


def accepts_connections(port: int) -> Probe:
    """Something listens on the loopback port."""

    async def probe(_: Child) -> None:
        try:
            _reader, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError as error:
            raise Unavailable(str(error)) from error
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    return probe


def log_says(text: bytes) -> Probe:
    """The log of this start holds `text`."""

    async def probe(child: Child) -> None:
        def found() -> bool:
            with child.log.open("rb") as file:
                file.seek(child.log_start)
                return text in file.read()

        if not await asyncio.to_thread(found):
            raise Unavailable(f"its log does not say {text.decode()!r} yet")

    return probe


def node_is_ready(api_url: str, admin_key: str, name: str) -> Probe:
    """The api lists the node `name` as ready, on a heartbeat of this start."""

    async def probe(child: Child) -> None:
        listed = await _request(
            "GET", f"{api_url}/api/nodes", headers={"Authorization": f"Bearer {admin_key}"}
        )
        node = next((node for node in listed["items"] if node["name"] == name), None)
        if node is None:
            raise Unavailable(f"node {name} has not joined")
        seen = datetime.fromisoformat(node["last_heartbeat_at"]).timestamp()
        if node["state"] != "ready" or seen < child.started_at:
            raise Unavailable(f"node {name} is {node['state']}, last seen at {seen:.0f}")

    return probe


def location_is_loaded(dagster_url: str) -> Probe:
    """The webserver has loaded every code location without an error."""
    query = (
        "{ workspaceOrError { __typename ... on PythonError { message } ... on Workspace "
        "{ locationEntries { name loadStatus locationOrLoadError "
        "{ __typename ... on PythonError { message } } } } } }"
    )

    async def probe(_: Child) -> None:
        workspace = (await _graphql(dagster_url, query))["workspaceOrError"]
        if workspace["__typename"] != "Workspace":
            raise Unavailable(str(workspace.get("message")).strip()[:500])
        for entry in workspace["locationEntries"]:
            loaded = entry["locationOrLoadError"] or {}
            if loaded.get("__typename") == "PythonError":
                raise Unavailable(f"{entry['name']}: {loaded['message'].strip()[:500]}")
            if entry["loadStatus"] != "LOADED":
                raise Unavailable(f"code location {entry['name']} is still loading")
        if not workspace["locationEntries"]:
            raise Unavailable("no code location yet")

    return probe


def daemon_beats(dagster_url: str) -> Probe:
    """Every daemon that the instance requires has sent a heartbeat since this start."""
    query = (
        "{ instance { daemonHealth { allDaemonStatuses "
        "{ daemonType required healthy lastHeartbeatTime } } } }"
    )

    async def probe(child: Child) -> None:
        health = (await _graphql(dagster_url, query))["instance"]["daemonHealth"]
        silent = [
            status["daemonType"]
            for status in health["allDaemonStatuses"]
            if status["required"]
            and not (status["healthy"] and status["lastHeartbeatTime"] >= child.started_at)
        ]
        if silent:
            raise Unavailable(f"no heartbeat yet of {', '.join(silent)}")

    return probe


async def _graphql(dagster_url: str, query: str) -> dict[str, Any]:
    answer = await _request("POST", f"{dagster_url}/graphql", json={"query": query})
    if "errors" in answer or not answer.get("data"):
        raise Unavailable(str(answer.get("errors"))[:500])
    return answer["data"]


async def _request(method: str, url: str, **options: Any) -> Any:
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            answer = await client.request(method, url, **options)
    except httpx.HTTPError as error:
        raise Unavailable(f"{type(error).__name__} at {url}") from error
    if answer.status_code != 200:
        raise Unavailable(f"{url} answers {answer.status_code}: {answer.text[:200]}")
    try:
        return answer.json()
    except ValueError:
        return answer.text
