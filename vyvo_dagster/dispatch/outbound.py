"""Where requests to a stranger's URL may go: to public addresses, judged after the name is resolved.

A name is resolved once for each request and the connection goes to the address that was judged, so
that an answer which changes between the two cannot lead it inside.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import httpx

from vyvo_dagster.domain.address import is_public_address
from vyvo_dagster.domain.webhook import is_loopback
from vyvo_dagster.errors import InvalidWebhook

__all__ = ["Resolve", "addresses", "resolve", "sni"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


_RESOLVING: Final = ThreadPoolExecutor(8, "resolve")


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a host, by the system's resolver."""
    # In threads of their own: names that no server answers for must not hold up what else uses the
    # loop's few threads.
    found = await asyncio.get_running_loop().run_in_executor(
        _RESOLVING, partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    )
    return list(dict.fromkeys(str(item[4][0]) for item in found))


async def addresses(url: httpx.URL, resolver: Resolve, *, allow_loopback: bool) -> Sequence[str]:
    """The addresses that `url` names.

    Raises:
        InvalidWebhook: one of them may not be called.
    """
    port = url.port or (443 if url.scheme == "https" else 80)
    found = await resolver(url.host, port)
    if allow_loopback and is_loopback(url.host):
        inside = [address for address in found if not is_loopback(address)]
    else:
        inside = [address for address in found if not is_public_address(address)]
    if inside:
        raise InvalidWebhook(f"{url.host} resolves to an address that may not be called")
    return found


def sni(url: httpx.URL) -> Mapping[str, Any]:
    """Request extensions by which TLS names the host, not the address: its check follows it."""
    return {"sni_hostname": url.host} if url.scheme == "https" else {}
