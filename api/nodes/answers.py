"""Answers to heartbeats, kept while nothing that they are made of changes."""

from typing import Final
from uuid import UUID

__all__ = ["Answers"]

_KEPT: Final = 20_000


class Answers:
    """The desired assignments last told to each node, as JSON.

    One holds as long as the rows that it was made of (their fingerprint) and what the node says of
    itself stay the same: then a heartbeat changes nothing either.
    """

    def __init__(self) -> None:
        self._kept: dict[UUID, tuple[object, str]] = {}

    def get(self, node_id: UUID, basis: object) -> str | None:
        """The answer that was made on this basis; None where the last one's was another."""
        kept = self._kept.get(node_id)
        return kept[1] if kept is not None and kept[0] == basis else None

    def keep(self, node_id: UUID, basis: object, answer: str) -> None:
        """Keep an answer instead of the one before it."""
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[node_id] = (basis, answer)
