"""The container engine of this host, called from threads."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

import docker
import requests
from docker.errors import DockerException

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.settings import EngineChoice

__all__ = ["Engine", "connect"]

T = TypeVar("T")

_CALL_SECONDS: Final = 60
_PING_SECONDS: Final = 5
_THREADS: Final = 8
_PULLS: Final = 2


class Engine:
    """A Docker engine that answers.

    Attributes:
        client: the SDK's client; it blocks, so its methods go through `call`.
        version: the engine's version.
    """

    def __init__(self, client: Any, version: str) -> None:
        self.client = client
        self.version = version
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="engine")
        # A pull takes minutes, and nothing that has to be killed may wait for it.
        self._pulls = ThreadPoolExecutor(_PULLS, thread_name_prefix="pull")
        self._closed = False

    @classmethod
    def open(cls, docker_host: str | None) -> Self:
        """Connect, and check that the engine answers. Blocks for up to some seconds.

        Raises:
            Unavailable: no engine answers there.
        """
        try:
            client: Any = (
                docker.DockerClient(base_url=docker_host, timeout=_PING_SECONDS)
                if docker_host
                else docker.from_env(timeout=_PING_SECONDS)
            )
            version = str(client.version()["Version"])
            # An engine that cannot list its images cannot run them: a broken store, a proxy
            # that lets only some calls through.
            client.images.list()
        except (DockerException, requests.RequestException, OSError) as error:
            raise Unavailable(
                f"no container engine answers at {docker_host or 'the default address'} "
                f"({type(error).__name__}); start one, or set VYVO_AGENT_ENGINE=process"
            ) from error
        client.api.timeout = _CALL_SECONDS
        return cls(client, version)

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run one blocking SDK call in a thread.

        Raises:
            Unavailable: the engine does not answer.
            docker.errors.APIError: the engine refuses.
        """
        return await self._called(self._threads, lambda: function(*args, **kwargs))

    async def pull(self, image: str, auth: Mapping[str, str] | None = None) -> None:
        """Pull an image, as whom `auth` says; a few at a time, in threads of their own.

        Raises:
            Unavailable, docker.errors.APIError: as `call` does.
        """
        login = None if auth is None else dict(auth)
        await self._called(self._pulls, lambda: self.client.images.pull(image, auth_config=login))

    async def _called(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        if self._closed:
            raise Unavailable("the connection to the container engine is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, call)
        except requests.RequestException as error:
            # The SDK's own APIError is one of these too, and is the engine's answer.
            if isinstance(error, DockerException):
                raise
            raise Unavailable(
                f"the container engine does not answer ({type(error).__name__})"
            ) from error

    async def aclose(self) -> None:
        """Release threads and connections."""
        self._closed = True
        for threads in (self._threads, self._pulls):
            threads.shutdown(wait=False, cancel_futures=True)
        self.client.close()


async def connect(choice: EngineChoice, docker_host: str | None) -> Engine | None:
    """The engine that runners will use; None for processes.

    Raises:
        Unavailable: an engine is asked for and none answers.
    """
    if choice == "process":
        return None
    try:
        return await asyncio.to_thread(Engine.open, docker_host)
    except Unavailable:
        if choice == "docker":
            raise
        return None
