"""Secrets that the servers hold: where they come from, behind one interface.

Whoever uses one asks for it each time and keeps it no longer than that, so that a provider may give
leased ones which it renews or revokes. `EnvironmentSecrets` reads them from the servers' settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import SecretStr

from vyvo_dagster.errors import InvalidInput

__all__ = ["EnvironmentSecrets", "RegistryLogin", "Secrets", "registry_host"]


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """As whom images are pulled from one registry."""

    host: str
    username: str
    password: str = field(repr=False)


class Secrets(Protocol):
    """A provider. Methods raise Unavailable when it does not answer; None is: there is no such secret."""

    async def registry_login(self, host: str) -> RegistryLogin | None:
        """The login at the OCI registry `host` (`host[:port]`, as in an image reference)."""
        ...

    async def hugging_face_token(self) -> SecretStr | None:
        """The token with which weights are fetched from the Hugging Face hub."""
        ...

    async def github_token(self) -> SecretStr | None:
        """The token with which builds are dispatched to GitHub Actions."""
        ...


class EnvironmentSecrets:
    """Secrets of the servers' own environment.

    Args:
        registries: `host[:port]` to `user:password`.
        hugging_face: token of the hub.
        github: token of the repository whose workflow builds.

    Raises:
        InvalidInput: a login has no user or no password.
    """

    def __init__(
        self, registries: Mapping[str, SecretStr], hugging_face: SecretStr | None = None,
        github: SecretStr | None = None,
    ) -> None:  # fmt: skip
        self._logins = {host: _login(host, text) for host, text in registries.items()}
        self._hugging_face = hugging_face
        self._github = github

    async def registry_login(self, host: str) -> RegistryLogin | None:
        """The login that is set for `host`."""
        return self._logins.get(host)

    async def hugging_face_token(self) -> SecretStr | None:
        """The token that is set."""
        return self._hugging_face

    async def github_token(self) -> SecretStr | None:
        """The token that is set."""
        return self._github


def registry_host(image: str) -> str:
    """The registry of an image reference, `docker.io` where it names none.

    As Docker reads it: what is before the first `/` is a host if it has a `.` or a `:`, or is
    `localhost`.
    """
    first, slash, _ = image.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    return first if named else "docker.io"


def _login(host: str, text: SecretStr) -> RegistryLogin:
    username, colon, password = text.get_secret_value().partition(":")
    if not (username and colon and password):
        raise InvalidInput(f"the registry login of {host} must look like user:password")
    return RegistryLogin(host, username, password)
