"""Images pulled beside whoever waits for them: a pull may take longer than a loop may stand still."""

import threading
from collections.abc import Mapping
from typing import Final

from docker.errors import DockerException

from vyvo_dagster.execution.routing.engines import ENGINE_ERRORS, Engines
from vyvo_dagster.execution.routing.hosts import DockerHost

__all__ = ["PULL_SECONDS", "Pulls", "pull"]

PULL_SECONDS: Final = 600
"""What an engine may stay silent for while it pulls."""


def pull(
    engines: Engines, host: DockerHost, image: str, registry: Mapping[str, str] | None
) -> None:
    """Pull an image; `registry` has a username and a password, where one wants a login.

    Raises:
        one of ENGINE_ERRORS.
    """
    login = None
    if registry:
        login = {"username": registry["username"], "password": registry["password"]}
    # A client of its own, as only this call may take so long.
    with engines.opened(host, PULL_SECONDS) as client:
        client.images.pull(image, auth_config=login)


class Pulls:
    """One pull at a time of an image to a host, each in a thread that nothing waits for."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines
        self._lock = threading.Lock()
        self._ends: dict[tuple[DockerHost, str], Exception | None] = {}
        self._running: set[tuple[DockerHost, str]] = set()

    def ready(self, host: DockerHost, image: str, registry: Mapping[str, str] | None) -> bool:
        """Whether a pull has ended well; begins one where none is under way.

        An end is told once: who asks again later begins another pull.

        Raises:
            APIError: the engine, or its registry, refuses.
            another of ENGINE_ERRORS: the engine went away.
        """
        key = host, image
        with self._lock:
            if key in self._running:
                return False
            if key in self._ends:
                if (error := self._ends.pop(key)) is not None:
                    raise error
                return True
            self._running.add(key)
        threading.Thread(
            target=self._pull, args=(key, registry), name=f"pull-{host.name}", daemon=True
        ).start()
        return False

    def _pull(self, key: tuple[DockerHost, str], registry: Mapping[str, str] | None) -> None:
        ended: Exception | None = None
        try:
            pull(self._engines, *key, registry)
        except ENGINE_ERRORS as error:
            ended = error
        except Exception as error:  # noqa: BLE001 - handed to who asks; a thread has nobody else
            ended = DockerException(f"pull of {key[1]}: {error}")
        with self._lock:
            self._running.discard(key)
            self._ends[key] = ended
