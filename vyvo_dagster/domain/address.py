"""Which hosts and addresses a stranger may make this system call."""

import ipaddress
import re
from typing import Final

__all__ = ["is_public_address", "may_be_public"]

_HOST = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*"
                   r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?")  # fmt: skip
_LOCAL_NAMES: Final = (
    "localhost",
    "local",
    "internal",
    "localdomain",
    "home.arpa",
    "intranet",
    "lan",
)


def is_public_address(text: str) -> bool:
    """Whether an IP address literal may be called: globally routable unicast only.

    IPv4 addresses that hide in IPv6 (mapped, 6to4, NAT64, Teredo) are judged as themselves.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        teredo = address.teredo
        inner = address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None)
        if inner is None and address in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public_address(str(inner))
    return address.is_global and not (address.is_multicast or address.is_reserved)


def may_be_public(host: str) -> bool:
    """Whether a host could be public. A name that only resolves to private addresses still passes."""
    if ":" in host:
        return is_public_address(host)
    name = host.rstrip(".").lower()
    if not _HOST.fullmatch(host) or "." not in name:
        return False
    last = name.rsplit(".", 1)[-1]
    # inet_aton reads 127.1, 0x7f.1 and 017700000001 as addresses; a real top-level domain is
    # never numeric, so whatever ends so must be a plain dotted quad.
    if last.isdigit() or last.startswith("0x"):
        return is_public_address(name)
    return not any(name == local or name.endswith(f".{local}") for local in _LOCAL_NAMES)
