"""Clients of the hosts' engines: by socket, by TCP with TLS, by ssh; every call has a time limit."""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import docker
import requests
from docker.errors import DockerException
from docker.tls import TLSConfig

from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy

__all__ = ["ENGINE_ERRORS", "HOLDING", "Engines", "Labels"]

T = TypeVar("T")

# Of ssh there are EOFError and what paramiko raises, which is an Exception of its own.
ENGINE_ERRORS: Final = (DockerException, requests.RequestException, OSError, EOFError)
HOLDING: Final = frozenset({"created", "running", "restarting", "paused"})
"""States in which a container holds its GPUs."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_THREADS: Final = 16


class Labels:
    """Labels of a step's container: by these it is found again, whoever lost it."""

    RUN: Final = "dagster/run_id"
    STEP: Final = "dagster/step_key"
    DEVICES: Final = "dagster/devices"
    """UUIDs of its GPUs, between commas."""


class Engines:
    """One client per host, opened when first asked for.

    Args:
        timeout: seconds that an engine may take to answer one request.
    """

    def __init__(self, timeout: int = 10) -> None:
        self._timeout = timeout
        self._clients: dict[DockerHost, Any] = {}
        self._lock = threading.Lock()

    def client(self, host: DockerHost) -> Any:
        """A `docker.DockerClient` of the host's engine.

        Raises:
            one of ENGINE_ERRORS: it does not answer.
            InvalidInput: its URL is none, or is plain TCP to another machine.
        """
        with self._lock:
            found = self._clients.get(host)
        if found is None:
            found = self._open(host)
            with self._lock:
                found = self._clients.setdefault(host, found)
        return found

    @contextlib.contextmanager
    def opened(self, host: DockerHost, timeout: int) -> Generator[Any]:
        """A client of its own for a call that takes long, up to `timeout` seconds without a word.

        Raises as `client`.
        """
        client = self._open(host, timeout)
        try:
            yield client
        finally:
            client.close()

    def forget(self, host: DockerHost) -> None:
        """Drop the client: one whose ssh connection broke stays broken."""
        with self._lock:
            client = self._clients.pop(host, None)
        if client is not None:
            client.close()

    def containers(self, host: DockerHost, label: str) -> list[Any]:
        """All containers with a label, such as `name` or `name=value`; none is left out."""
        found: list[Any] = self.client(host).containers.list(
            all=True, filters={"label": label}, ignore_removed=True
        )
        return found

    def occupancy(self, hosts: Iterable[DockerHost]) -> dict[str, Occupancy | None]:
        """What steps hold on each host; None where the engine does not answer."""

        def of(host: DockerHost) -> Occupancy:
            held = [c for c in self.containers(host, Labels.RUN) if c.status in HOLDING]
            devices = {d for c in held for d in c.labels.get(Labels.DEVICES, "").split(",") if d}
            return Occupancy(frozenset(devices), len(held))

        answers = self.each(hosts, of)
        return {
            host.name: None if isinstance(answer, Exception) else answer
            for host, answer in answers.items()
        }

    def each(
        self, hosts: Iterable[DockerHost], ask: Callable[[DockerHost], T]
    ) -> dict[DockerHost, T | Exception]:
        """Ask all hosts at once: those that do not answer hold up none that do."""

        def answer(host: DockerHost) -> T | Exception:
            try:
                return ask(host)
            except Exception as error:  # noqa: BLE001 - handed back, by host
                self.forget(host)
                return error

        asked = list(dict.fromkeys(hosts))
        if not asked:
            return {}
        with ThreadPoolExecutor(min(len(asked), _THREADS)) as threads:
            return dict(zip(asked, threads.map(answer, asked), strict=True))

    def close(self) -> None:
        """Close all clients."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            # Over ssh a server that has gone is an error even to who takes leave.
            with contextlib.suppress(*ENGINE_ERRORS):
                client.close()

    def _open(self, host: DockerHost, timeout: int | None = None) -> Any:
        parts, tls = urlsplit(host.url), None
        if parts.scheme not in {"unix", "tcp", "ssh"}:
            raise InvalidInput(
                f"engine of {host.name}: {host.url!r} begins with none of unix://, tcp://, ssh://"
            )
        if parts.scheme == "tcp":
            if host.tls_dir is not None:
                folder = host.tls_dir
                tls = TLSConfig(
                    client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
                    ca_cert=str(folder / "ca.pem"),
                    verify=True,
                )
            elif parts.hostname not in _LOOPBACK:
                # Who reaches an engine is root on its host.
                raise InvalidInput(
                    f"engine of {host.name}: {host.url} needs TLS with a client certificate"
                )
        try:
            version = self._version(host.url, tls) if parts.scheme == "tcp" else "auto"
            client = docker.DockerClient(
                base_url=host.url,
                tls=tls or False,
                timeout=timeout or self._timeout,
                version=version,
            )
        except ENGINE_ERRORS:
            raise
        except Exception as error:  # paramiko's own
            raise DockerException(f"{host.url}: {error}") from error
        client.api.trust_env = parts.scheme != "tcp"
        return client

    def _version(self, url: str, tls: TLSConfig | None) -> str:
        """The API version of an engine at a TCP address.

        Asked apart: with REQUESTS_CA_BUNDLE set, requests would check the engine's certificate
        against that and not against ours, and a proxy would be given the connection.
        """
        with contextlib.closing(
            docker.APIClient(url, version="1.41", tls=tls or False, timeout=self._timeout)
        ) as asked:
            asked.trust_env = False
            return str(asked.version(api_version=False)["ApiVersion"])
