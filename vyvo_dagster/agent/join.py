"""Joining the control plane, and the credential that a join leaves on disk."""

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from vyvo_dagster.agent.backoff import Backoff
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.errors import Forbidden, InvalidInput, Unauthenticated, VyvoError
from vyvo_dagster.protocol.node import Register, RegisterAnswer, S3Access

__all__ = ["CredentialFile", "Session", "join"]

_log = logging.getLogger(__name__)

_FIRST_DELAY: Final = 0.5
_LONGEST_DELAY: Final = 15.0


@dataclass(frozen=True, slots=True)
class Session:
    """What one join agreed on; a later join replaces it."""

    node_id: UUID
    boot_id: UUID
    redis_url: str
    s3: S3Access
    artifact_ttl_seconds: int
    heartbeat_seconds: float
    credential_seconds: float | None = None


class CredentialFile:
    """`{node_id, credential}` in a file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> str | None:
        """The stored credential; None when there is none that can be read."""
        try:
            stored: Any = json.loads(self.path.read_text())
            return str(stored["credential"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("credential in %s is unreadable (%s); joining anew", self.path, error)
            return None

    def save(self, node_id: UUID, credential: str) -> None:
        """Write it whole or not at all, mode 0600."""
        partial = self.path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({"node_id": str(node_id), "credential": credential}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)


async def join(
    control_plane: ControlPlane,
    stored: CredentialFile,
    join_token: str | None,
    body: Register,
) -> Session:
    """Register until it succeeds, and leave `control_plane` with the node's credential.

    The stored credential is tried first, the join token when there is none or it is refused.
    One log line says that the api is away or refuses, another when that changes.

    Raises:
        InvalidInput: there is neither a stored credential nor a join token, or the api refuses
            what this node says of itself.
    """
    backoff, said = Backoff(_FIRST_DELAY, _LONGEST_DELAY), ""
    while True:
        try:
            answer = await _register(control_plane, stored, join_token, body)
        except InvalidInput:
            # What the operator configured cannot work; trying on would only hide it.
            raise
        except VyvoError as error:
            if error.detail != said:
                said = error.detail
                _log.warning("cannot join: %s; trying on", said)
            await asyncio.sleep(backoff.next())
            continue
        _log.info("joined %s as node %s (%s)", control_plane.url, body.name, answer.node_id)
        return Session(
            node_id=answer.node_id,
            boot_id=body.boot_id,
            redis_url=answer.redis_url,
            s3=answer.s3,
            artifact_ttl_seconds=answer.artifact_ttl_seconds,
            heartbeat_seconds=answer.heartbeat_seconds,
            credential_seconds=answer.credential_seconds,
        )


async def _register(
    control_plane: ControlPlane, stored: CredentialFile, join_token: str | None, body: Register
) -> RegisterAnswer:
    credential = stored.load()
    if credential is not None:
        try:
            answer = await control_plane.register(body, credential)
        except (Unauthenticated, Forbidden) as error:
            if join_token is None:
                raise Unauthenticated(
                    f"the api refuses the stored credential of this node ({error.detail}); "
                    "set VYVO_AGENT_JOIN_TOKEN to join again"
                ) from error
        else:
            control_plane.credential = answer.credential or credential
            if answer.credential is not None:
                stored.save(answer.node_id, answer.credential)
            return answer
    if join_token is None:
        raise InvalidInput("this node has not joined yet: set VYVO_AGENT_JOIN_TOKEN")
    try:
        answer = await control_plane.register(body, join_token)
    except Unauthenticated as error:
        raise Unauthenticated(
            f"the api refuses the join token ({error.detail}); set VYVO_AGENT_JOIN_TOKEN to its "
            "VYVO_JOIN_TOKEN"
        ) from error
    if answer.credential is None:
        raise Forbidden("the api took the join token and gave no credential")
    stored.save(answer.node_id, answer.credential)
    control_plane.credential = answer.credential
    return answer
