"""The node's own credential, replaced before it ends."""

import asyncio
import logging
import random
from typing import Final

from vyvo_dagster.agent.backoff import Backoff
from vyvo_dagster.agent.control_plane import ControlPlane
from vyvo_dagster.agent.join import CredentialFile, Session
from vyvo_dagster.errors import NotFound, VyvoError

__all__ = ["rotate"]

_log = logging.getLogger(__name__)

_FIRST_RETRY: Final = 5.0
_LONGEST_RETRY: Final = 600.0


async def rotate(control_plane: ControlPlane, stored: CredentialFile, session: Session) -> None:
    """Have the credential replaced after half of its life, again and again; canceled with its session.

    It is on disk before it is used. The one before is good for a day more, so that nothing is lost
    if this process ends in between.
    """
    left = session.credential_seconds
    backoff = Backoff(_FIRST_RETRY, _LONGEST_RETRY)
    while left is not None:
        await asyncio.sleep(left * random.uniform(0.4, 0.5))  # noqa: S311 - spreads the nodes
        try:
            answer = await _replaced(control_plane, stored, session)
        except NotFound:
            _log.info("the api replaces no credentials")
            return
        except (VyvoError, OSError) as error:
            _log.warning("the credential of this node is not replaced yet: %s", error)
            left = backoff.next()
            continue
        backoff.reset()
        left = answer
        _log.info("the credential of this node was replaced")


async def _replaced(control_plane: ControlPlane, stored: CredentialFile, session: Session) -> float:
    answer = await control_plane.replace_credential(session.node_id)
    stored.save(session.node_id, answer.credential)
    control_plane.credential = answer.credential
    return answer.credential_seconds
