"""Images that a Docker engine holds, by the names that versions have for them."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, cast

import docker.errors
import requests

from vyvo_dagster.building.container_check import engine_client

__all__ = ["EngineImages"]

_ERRORS: Final = (docker.errors.DockerException, requests.RequestException)


class EngineImages:
    """The images of one engine. Names are `registry/repository@sha256:...`."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def opened(cls, docker_host: str | None) -> "Generator[EngineImages | None]":
        """Those of an engine; None where none answers."""
        try:
            client = engine_client(docker_host)
        except _ERRORS:
            yield None
            return
        try:
            client.ping()
        except _ERRORS:
            yield None
        else:
            yield cls(client)
        finally:
            client.close()

    def names(self) -> set[str]:
        """The names of all its images."""
        try:
            found = cast("list[Any]", self._client.images.list())
        except _ERRORS:
            return set()
        return {name for image in found for name in image.attrs.get("RepoDigests") or []}

    def size_bytes(self, name: str) -> int | None:
        """Bytes of an image on the disk; None where it is not there."""
        try:
            return int(self._client.images.get(name).attrs["Size"])
        except _ERRORS:
            return None

    def remove(self, name: str) -> int | None:
        """Remove an image under this name, with the tags of its repository; its bytes.

        None where it is not there, or a container is made of it.
        """
        try:
            attrs = self._client.images.get(name).attrs
            used = self._client.containers.list(all=True, filters={"ancestor": attrs["Id"]})
            if used:
                return None
            repository = name.partition("@")[0]
            for tag in attrs.get("RepoTags") or []:
                if str(tag).rpartition(":")[0] == repository:
                    self._client.images.remove(tag, noprune=False)
            if name in self.names():
                self._client.images.remove(name)
        except _ERRORS:
            return None
        return int(attrs["Size"])
