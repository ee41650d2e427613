"""Queue entries that nobody can read: kept with their reason instead of stopping the queue."""

from collections.abc import Sequence
from uuid import UUID

from vyvo_dagster.store.database import Store
from vyvo_dagster.streams.entries import Entry

__all__ = ["set_aside", "storable", "unreadable"]


def unreadable(entries: Sequence[Entry]) -> list[tuple[Entry, str]]:
    """The entries that name no job, each with what is wrong with it."""
    found: list[tuple[Entry, str]] = []
    for entry in entries:
        id_ = entry.fields.get("id")
        if id_ is None:
            found.append((entry, "the entry has no field id"))
            continue
        try:
            UUID(id_)
        except ValueError:
            found.append((entry, "the entry's id is no job id"))
    return found


async def set_aside(store: Store, entries: Sequence[Entry]) -> list[Entry]:
    """Keep unreadable entries among the dead letters; returns them, to be acknowledged after the commit."""
    poison = unreadable(entries)
    if poison:
        await store.dead_letters.bury(
            [(e.stream, e.id, storable(e), reason) for e, reason in poison]
        )
    return [entry for entry, _ in poison]


def storable(entry: Entry) -> dict[str, str]:
    """A JSONB column takes no NUL, and what is shown need not be megabytes."""
    return {
        key[:200].replace("\0", "\ufffd"): value[:4000].replace("\0", "\ufffd")
        for key, value in list(entry.fields.items())[:32]
    }
