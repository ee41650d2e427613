"""What an OCI registry says of an image, over its HTTP API (distribution spec v1.1)."""

import hashlib
import json
from typing import Any, Final, NamedTuple, cast

import httpx

from vyvo_dagster.errors import BuildFailed, Unavailable

__all__ = ["Manifest", "delete_manifest", "read_manifest", "registry_answers"]

_ACCEPT: Final = (
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json"
)
_OK: Final = 200
_ACCEPTED: Final = 202
_MISSING: Final = 404
_NOT_ALLOWED: Final = 405
# What asks for a login that only the engine has.
_REFUSED: Final = frozenset({401, 403})
_LOOPBACK: Final = ("127.", "localhost", "[::1]")


class Manifest(NamedTuple):
    """A manifest's digest (`sha256:...`), and the bytes of config and compressed layers."""

    digest: str
    size_bytes: int


def registry_answers(registry: str, timeout: float = 3.0) -> bool:
    """Whether a registry is at `host:port`; one that asks for a login counts."""
    try:
        status = httpx.get(f"{_base(registry)}/v2/", timeout=timeout, trust_env=False).status_code
    except httpx.HTTPError:
        return False
    return status in {_OK, *_REFUSED}


def read_manifest(
    registry: str, repository: str, digest: str, timeout: float = 30.0
) -> Manifest | None:
    """The manifest that the registry holds under `digest`, its bytes checked against it.

    Returns:
        None where the registry asks for a login that only the engine has.

    Raises:
        BuildFailed: the registry does not have it, or has other bytes.
        Unavailable: it does not answer.
    """
    url = f"{_base(registry)}/v2/{repository}/manifests/{digest}"
    try:
        answer = httpx.get(url, headers={"Accept": _ACCEPT}, timeout=timeout, trust_env=False)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the registry {registry} does not answer ({type(error).__name__})"
        ) from error
    if answer.status_code in _REFUSED:
        return None
    if answer.status_code != _OK:
        raise BuildFailed(f"push: {registry}/{repository}@{digest} answered {answer.status_code}")
    found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    if found != digest:
        raise BuildFailed(f"push: the registry holds {found} under {digest}")
    return Manifest(digest, sum(_parts_of(answer.content)))


def delete_manifest(
    registry: str, repository: str, digest: str, *, dry_run: bool = False, timeout: float = 5.0
) -> int | None:
    """Delete a manifest by its digest, and with it all its tags.

    The registry's own collection frees the layers that nothing names any more.

    Args:
        registry: `host:port`.
        repository: of the manifest.
        digest: `sha256:...`.
        dry_run: only look.
        timeout: seconds for each of two requests.

    Returns:
        Bytes of its config and layers; None where it was not there.

    Raises:
        Unavailable: the registry does not answer, wants a login, or allows no deletes.
    """
    url = f"{_base(registry)}/v2/{repository}/manifests/{digest}"
    try:
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            found = client.get(url, headers={"Accept": _ACCEPT})
            if found.status_code == _MISSING:
                return None
            if found.status_code != _OK:
                raise Unavailable(f"{registry} answered {found.status_code} for {repository}")
            parts = _parts_of(found.content)
            if dry_run:
                return sum(parts)
            deleted = client.delete(url).status_code
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the registry {registry} does not answer ({type(error).__name__})"
        ) from error
    if deleted == _NOT_ALLOWED:
        raise Unavailable(
            f"the registry {registry} allows no deletes; see its storage.delete.enabled"
        )
    if deleted not in {_ACCEPTED, _OK, _MISSING}:
        raise Unavailable(f"{registry} answered {deleted} to the delete of {repository}@{digest}")
    return sum(parts)


def _parts_of(content: bytes) -> list[int]:
    manifest = cast("dict[str, Any]", json.loads(content))
    parts = [manifest.get("config") or {}, *(manifest.get("layers") or [])]
    return [int(part.get("size", 0)) for part in parts]


def _base(registry: str) -> str:
    # As Docker does: loopback registries are plain HTTP, all others need TLS.
    return f"{'http' if registry.startswith(_LOOPBACK) else 'https'}://{registry}"
