"""Secrets of a Vault or OpenBao server: KV version 2, by a token or by AppRole."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import quote

import hvac
import hvac.exceptions
import requests
from pydantic import SecretStr

from vyvo_dagster.errors import InvalidInput, Unavailable
from vyvo_dagster.security.secrets import RegistryLogin
from vyvo_dagster.settings_vault import VaultSettings

__all__ = ["NodeToken", "VaultSecrets"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_CALL_SECONDS: Final = 5
_WAIT_SECONDS: Final = 15.0
_WRAP_SECONDS: Final = 60
# Of a token's life: renewed, or replaced by a new login, with the rest to spare.
_RENEW_AFTER: Final = 0.6


@dataclass(frozen=True, slots=True)
class NodeToken:
    """A token for one node, wrapped: whoever unwraps it first has it, and nobody after."""

    wrapping_token: str = field(repr=False)
    accessor: str
    """Revokes it; grants nothing."""
    seconds: int


@dataclass(slots=True)
class _Kept:
    value: dict[str, Any] | None
    at: float


class VaultSecrets:
    """A provider of secrets.

    What was read serves for `cache_seconds`, and for `outage_seconds` while the server is away or
    sealed. A refusal (403) ends it at once: a right that was taken away is not outlived by a cache.

    Args:
        clock: monotonic seconds.

    Raises:
        InvalidInput: the settings name no way in, or two.
    """

    def __init__(
        self, settings: VaultSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        by_role = settings.role_id is not None and settings.secret_id is not None
        if settings.address is None or by_role == (settings.token is not None):
            raise InvalidInput(
                "VYVO_VAULT_ADDRESS needs either VYVO_VAULT_TOKEN, or VYVO_VAULT_ROLE_ID and "
                "VYVO_VAULT_SECRET_ID"
            )
        self._settings, self._clock = settings, clock
        self._client = hvac.Client(
            url=settings.address, namespace=settings.namespace, timeout=_CALL_SECONDS,
            verify=str(settings.ca) if settings.ca is not None else True, allow_redirects=False,
            token="" if settings.token is None else settings.token.get_secret_value(),
        )  # fmt: skip
        # What the environment says of proxies is not for secrets.
        self._client.session.trust_env = False
        self._renew_at = float("-inf")
        self._kept: dict[str, _Kept] = {}
        self._lock = asyncio.Lock()

    async def registry_login(self, host: str) -> RegistryLogin | None:
        """The login at `registries/<host>`: `username` and `password`."""
        found = await self._read(f"registries/{quote(host, safe='.:-')}")
        if found is None:
            return None
        return RegistryLogin(host, _text(found, "username", host), _text(found, "password", host))

    async def hugging_face_token(self) -> SecretStr | None:
        """`token` of `hugging-face`."""
        found = await self._read("hugging-face")
        return None if found is None else SecretStr(_text(found, "token", "hugging-face"))

    async def github_token(self) -> SecretStr | None:
        """`token` of `github`."""
        found = await self._read("github")
        return None if found is None else SecretStr(_text(found, "token", "github"))

    async def node_token(self, node: str) -> NodeToken:
        """A token for a node, with the policy for nodes, renewable, handed over by wrapping.

        Raises:
            Unavailable: the server is away or sealed, or refuses.
        """
        policy, seconds = self._settings.node_policy, self._settings.node_seconds

        def create() -> NodeToken:
            made: Any = self._client.auth.token.create(
                policies=[policy], ttl=f"{seconds}s", renewable=True, no_default_policy=False,
                meta={"node": node}, display_name="vyvo-node", wrap_ttl=f"{_WRAP_SECONDS}s",
            )  # fmt: skip
            wrapped = made["wrap_info"]
            return NodeToken(wrapped["token"], wrapped["wrapped_accessor"], seconds)

        return await self._ask(create)

    async def revoke_node_token(self, accessor: str) -> None:
        """End a node's token at once; one that has ended already is no error."""

        def revoke() -> None:
            try:
                self._client.auth.token.revoke_accessor(accessor)
            except (hvac.exceptions.InvalidRequest, hvac.exceptions.InvalidPath):
                _log.info("the node's token had ended")
            except hvac.exceptions.Forbidden as error:
                # OpenBao says so of an accessor that it does not know any more.
                if "invalid accessor" not in str(error):
                    raise

        await self._ask(revoke)

    async def _read(self, name: str) -> dict[str, Any] | None:
        kept = self._kept.get(name)
        if kept is not None and self._clock() - kept.at < self._settings.cache_seconds:
            return kept.value
        try:
            value = await self._ask(lambda: self._fetch(name))
        except _Refused:
            self._kept.pop(name, None)
            raise
        except Unavailable as error:
            if kept is not None and self._clock() - kept.at < self._settings.outage_seconds:
                _log.warning("%s; %s is used as it was", error.detail, name)
                return kept.value
            raise
        self._kept[name] = _Kept(value, self._clock())
        return value

    def _fetch(self, name: str) -> dict[str, Any] | None:
        try:
            answer: Any = self._client.secrets.kv.v2.read_secret_version(
                path=f"{self._settings.path}/{name}", mount_point=self._settings.mount,
                raise_on_deleted_version=True,
            )  # fmt: skip
        except hvac.exceptions.InvalidPath:
            return None
        return dict(answer["data"]["data"])

    async def _ask(self, work: Callable[[], T]) -> T:
        """Do it in a thread, one at a time, with a token that is good.

        Raises:
            Unavailable: with what is the matter.
        """
        try:
            async with asyncio.timeout(_WAIT_SECONDS), self._lock:
                return await asyncio.to_thread(self._authenticated, work)
        except hvac.exceptions.Forbidden as error:
            raise _Refused("Vault refuses what this server asks for; see its policy") from error
        except hvac.exceptions.VaultDown as error:
            raise Unavailable("Vault is sealed; unseal it") from error
        except (hvac.exceptions.VaultError, requests.RequestException, TimeoutError) as error:
            raise Unavailable(f"Vault does not answer ({type(error).__name__})") from error
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable("Vault answered something else than it should") from error

    def _authenticated(self, work: Callable[[], T]) -> T:
        fresh = self._clock() >= self._renew_at
        if fresh:
            self._log_in()
        try:
            return work()
        except hvac.exceptions.Forbidden:
            if fresh or self._settings.role_id is None:
                raise
            # The token may have ended before its time.
            self._log_in()
            return work()

    def _log_in(self) -> None:
        """Log in by AppRole, or renew the token that was given."""
        settings = self._settings
        if settings.role_id is not None and settings.secret_id is not None:
            self._client.token = ""
            answer: Any = self._client.auth.approle.login(
                settings.role_id, settings.secret_id.get_secret_value(), use_token=False
            )
            self._client.token = answer["auth"]["client_token"]
            seconds = float(answer["auth"]["lease_duration"])
        else:
            about: Any = self._client.auth.token.lookup_self()
            if about["data"].get("renewable"):
                renewed: Any = self._client.auth.token.renew_self()
                seconds = float(renewed["auth"]["lease_duration"])
            else:
                seconds = float(about["data"].get("ttl") or 0)
        # A life of 0 is that of a root token: it never ends.
        self._renew_at = self._clock() + (seconds or 3600.0) * _RENEW_AFTER


class _Refused(Unavailable):
    """The server answers, and does not give it."""


def _text(found: dict[str, Any], name: str, what: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value:
        raise Unavailable(f"the secret of {what} in Vault has no {name}")
    return value
