"""Fetching from a host that a stranger named, without reaching the inside of the network.

A name is resolved once, every address it has must be public, and the connection goes to the
address that was checked: a name that answers differently the second time (DNS rebinding) gains
nothing. A redirect is a new name and passes the same gate.
"""

import socket
import ssl
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpx

from vyvo_dagster.building.validation import validate_weights_uri
from vyvo_dagster.domain.address import is_public_address
from vyvo_dagster.errors import BuildFailed, InvalidWeightsUri, Unavailable

__all__ = ["Resolve", "public_addresses", "resolve", "stream_public"]

Resolve = Callable[[str, int], Sequence[str]]
"""Host and port to addresses."""

_OK_CODES: Final = frozenset({200, 206})
_BUSY_CODES: Final = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS: Final = 5
_REDIRECT_CODES: Final = frozenset({301, 302, 303, 307, 308})
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)


def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, by the system's resolver; BuildFailed if it has none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BuildFailed(f"the host {host} cannot be resolved ({error})") from error
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def public_addresses(host: str, port: int, resolver: Resolve = resolve) -> list[str]:
    """The addresses of a host, all of them public.

    Raises:
        InvalidWeightsUri: one is loopback, link-local, private or otherwise not global. One is
            enough: which address a client would take is not the caller's to choose.
    """
    addresses = list(resolver(host, port))
    inside = [address for address in addresses if not is_public_address(address)]
    if inside or not addresses:
        raise InvalidWeightsUri(f"weights_uri: {host} resolves to {', '.join(inside) or 'nothing'}, "
                                "which is not a public address")  # fmt: skip
    return addresses


@contextmanager
def stream_public(
    uri: str,
    *,
    addresses: Callable[[str, int], Sequence[str]] = public_addresses,
    verify: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> Generator[httpx.Response]:
    """A streaming GET of an https URL; every hop is validated and pinned to a checked address.

    Args:
        uri: https URL.
        addresses: gives the addresses that a host may be reached at, or raises.
        verify: TLS context; the system's trust store when None.
        headers: of the request, such as Range; the answer may then be a part (206).

    Raises:
        InvalidWeightsUri: the URL or a redirect's target is not allowed.
        BuildFailed: the host answers other than 200 or 206. Unavailable: it cannot be reached now.
    """
    # trust_env off: a proxy of the environment would resolve the name itself, after the check.
    with httpx.Client(
        verify=verify or ssl.create_default_context(), timeout=_TIMEOUT, trust_env=False
    ) as client:
        for _ in range(_REDIRECTS + 1):
            response = _open(client, uri, addresses, headers or {})
            try:
                if response.status_code in _REDIRECT_CODES:
                    target = urljoin(uri, response.headers.get("location", ""))
                    uri = validate_weights_uri(target)
                    if not uri.startswith("https://"):
                        raise InvalidWeightsUri("weights_uri redirects away from https")
                    continue
                if response.status_code in _BUSY_CODES:
                    raise Unavailable(f"{_without_query(uri)} answered {response.status_code}")
                if response.status_code not in _OK_CODES:
                    raise BuildFailed(
                        f"weights: {_without_query(uri)} answered {response.status_code}"
                    )
                yield response
                return
            finally:
                response.close()
    raise BuildFailed(f"weights: {_without_query(uri)} redirects more than {_REDIRECTS} times")


def _open(
    client: httpx.Client,
    uri: str,
    addresses: Callable[[str, int], Sequence[str]],
    headers: Mapping[str, str],
) -> httpx.Response:
    url = httpx.URL(uri)
    port = url.port or 443
    failure: Exception | None = None
    for address in addresses(url.host, port):
        request = client.build_request(
            "GET",
            url.copy_with(host=address),
            headers={
                **headers,
                "Host": url.netloc.decode("ascii"),
                "Accept-Encoding": "identity",
            },
            # TLS names the host, not the address: SNI and the certificate's check follow it.
            extensions={"sni_hostname": url.host},
        )
        try:
            return client.send(request, stream=True)
        except httpx.HTTPError as error:
            failure = error
    raise Unavailable(f"{url.host} cannot be reached ({failure})") from failure


def _without_query(uri: str) -> str:
    # A query may hold a signature.
    return urlsplit(uri)._replace(query="").geturl()
