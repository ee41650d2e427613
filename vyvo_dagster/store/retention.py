"""What becomes of artifacts' rows: their end, their objects' loss, and passes that tell of it.

Statements are for whole batches; rows that another pass holds are passed over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, TEXT, insert
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JOB
from vyvo_dagster.domain.retention import ARTIFACT, SWEEP, ArtifactState, SweepState
from vyvo_dagster.store.records import SweepRow
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import artifact_sweeps, artifacts

__all__ = ["DueArtifact", "RetentionRepository"]

_LIVE: Final = (ArtifactState.STORED, ArtifactState.MISSING)


def _among(states: Any) -> str:
    return ", ".join(f"'{state}'" for state in sorted(states))


@dataclass(frozen=True, slots=True)
class DueArtifact:
    """An artifact whose object is to be deleted, unless another live row has the same (`shared`)."""

    id: UUID
    url: str
    size_bytes: int
    shared: bool


# Texts that somebody may still read, once for all candidates: only those that name an object at all.
# Of workflows also those that have ended: what their steps made without a job has no row of its own.
_REFERRED = sa.text(f"""
    with given as (
        select * from unnest(:urls, :owners) as given(url, owner)
    ), texts as materialized (
        select input::text as text from jobs
            where state not in ({_among(JOB.terminal)}) and input::text like '%s3://%'
        union all
        select concat(inputs, ' ', outputs) from workflow_runs
            where concat(inputs, ' ', outputs) like '%s3://%'
        union all
        select concat(input, ' ', output) from workflow_steps
            where concat(input, ' ', output) like '%s3://%'
        union all
        select concat(weights_uri, ' ', weights_url, ' ', env) from model_versions
            where concat(weights_uri, ' ', weights_url, ' ', env) like '%s3://%'
        union all
        select concat(weights_uri, ' ', lock_url, ' ', sbom_url, ' ', log_url, ' ', env)
            from runner_builds
            where concat(weights_uri, ' ', lock_url, ' ', sbom_url, ' ', log_url, ' ', env)
                like '%s3://%'
    )
    select url from given where
        exists (
            select from jobs where jobs.id = given.owner
            and (jobs.state not in ({_among(JOB.terminal)})
                 or position(given.url in jobs.output::text) > 0))
        or exists (select from texts where position(given.url in texts.text) > 0)
""").bindparams(  # noqa: S608 - members of enums
    sa.bindparam("urls", type_=ARRAY(TEXT)),
    sa.bindparam("owners", type_=ARRAY(PG_UUID(as_uuid=True))),
)


class RetentionRepository:
    """SQL over the ends of artifacts, and over artifact_sweeps."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def count_due(self) -> int:
        """How many artifacts have come to their end and are not marked."""
        query = sa.select(sa.func.count()).select_from(artifacts).where(*_due())
        return (await self._connection.execute(query)).scalar_one()

    async def expire(self, limit: int) -> int:
        """Mark at most `limit` artifacts whose end has come; how many there were."""
        due = (
            sa.select(artifacts.c.id).where(*_due()).order_by(artifacts.c.expires_at).limit(limit)
            .with_for_update(skip_locked=True)
        )  # fmt: skip
        change = (
            sa.update(artifacts).where(artifacts.c.id.in_(due)).values(state=ArtifactState.EXPIRED)
        )
        return (await self._connection.execute(change)).rowcount

    async def to_delete(self, after: UUID | None, limit: int) -> list[DueArtifact]:
        """Marked artifacts in the order of ids, beyond `after`; those of earlier passes too."""
        other = artifacts.alias("other")
        shared = sa.exists().where(
            other.c.url == artifacts.c.url,
            other.c.id != artifacts.c.id,
            other.c.state.in_(_LIVE),
        )
        query = sa.select(
            artifacts.c.id, artifacts.c.url, artifacts.c.size_bytes, shared.label("shared")
        ).where(artifacts.c.state == ArtifactState.EXPIRED)
        if after is not None:
            query = query.where(artifacts.c.id > after)
        rows = await self._connection.execute(query.order_by(artifacts.c.id).limit(limit))
        return [DueArtifact(*row) for row in rows]

    async def deleted(self, ids: Sequence[UUID]) -> None:
        """Note that the objects of marked artifacts are gone."""
        change = (
            sa.update(artifacts)
            .where(artifacts.c.id.in_(ids), artifacts.c.state.in_(ARTIFACT.before(ArtifactState.DELETED)))
            .values(state=ArtifactState.DELETED, deleted_at=sa.func.now(), delete_error=None)
        )  # fmt: skip
        await self._connection.execute(change)

    async def not_deleted(self, errors: Mapping[UUID, str]) -> None:
        """Note why objects could not be deleted; a later pass tries again."""
        if not errors:
            return
        change = (
            sa.update(artifacts)
            .where(artifacts.c.id == sa.bindparam("of"))
            .values(delete_error=sa.bindparam("why"))
        )
        await self._connection.execute(
            change, [{"of": key, "why": why[:1000]} for key, why in errors.items()]
        )

    async def to_check(self, older_than: timedelta, limit: int) -> list[tuple[UUID, str]]:
        """Ids and URLs of artifacts that should be there, the longest unchecked first, each once a pass.

        `older_than`: neither younger nor checked since.
        """
        edge = sa.func.now() - older_than
        query = (
            sa.select(artifacts.c.id, artifacts.c.url)
            .where(
                artifacts.c.state.in_(_LIVE), artifacts.c.created_at < edge,
                sa.or_(artifacts.c.checked_at.is_(None), artifacts.c.checked_at < edge),
            )
            .order_by(artifacts.c.checked_at.asc().nulls_first(), artifacts.c.id).limit(limit)
        )  # fmt: skip
        return [(row.id, row.url) for row in await self._connection.execute(query)]

    async def checked(self, found: Sequence[UUID], missing: Sequence[UUID]) -> tuple[int, int]:
        """Note what was looked for: how many are newly missing, and how many are there again."""
        newly = await self._became(missing, ArtifactState.STORED, ArtifactState.MISSING)
        again = await self._became(found, ArtifactState.MISSING, ArtifactState.STORED)
        looked = sa.update(artifacts).where(artifacts.c.id.in_([*found, *missing]))
        await self._connection.execute(looked.values(checked_at=sa.func.now()))
        return newly, again

    async def _became(self, ids: Sequence[UUID], old: ArtifactState, new: ArtifactState) -> int:
        ARTIFACT.check(old, new)
        change = sa.update(artifacts).where(artifacts.c.id.in_(ids), artifacts.c.state == old)
        return (await self._connection.execute(change.values(state=new))).rowcount

    async def kept(self, urls: Sequence[str]) -> set[str]:
        """Those of `urls` that an artifact's row names whose object is not deleted yet."""
        query = sa.select(artifacts.c.url).where(
            artifacts.c.url == sa.any_(sa.cast(list(urls), ARRAY(TEXT))),
            artifacts.c.state != ArtifactState.DELETED,
        )
        return set((await self._connection.execute(query)).scalars())

    async def referred(self, owners: Mapping[str, UUID | None]) -> set[str]:
        """Those URLs (to the job in their key) that some row still refers to, or whose job runs."""
        given = {"urls": list(owners), "owners": list(owners.values())}
        return set((await self._connection.execute(_REFERRED, given)).scalars())

    async def add_sweep(self, **values: Any) -> None:
        """A pass that was asked for; a repeat changes nothing."""
        made = insert(artifact_sweeps).values(state=SweepState.QUEUED, **values)
        await self._connection.execute(made.on_conflict_do_nothing())

    async def move_sweep(self, id: UUID, to: SweepState, **values: Any) -> bool:
        """Bring a pass into a state; False where it was in none that leads there."""
        times = {SweepState.RUNNING: "started_at"}
        change = (
            sa.update(artifact_sweeps)
            .where(artifact_sweeps.c.id == id, artifact_sweeps.c.state.in_(SWEEP.before(to)))
            .values({"state": to, times.get(to, "finished_at"): sa.func.now(), **values})
        )
        return bool((await self._connection.execute(change)).rowcount)

    async def sweep(self, id: UUID) -> SweepRow | None:
        """One pass."""
        query = sa.select(artifact_sweeps).where(artifact_sweeps.c.id == id)
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(SweepRow, row)

    async def sweeps(self, cursor: UUID | None, limit: int) -> list[SweepRow]:
        """Passes, newest first."""
        query = page(sa.select(artifact_sweeps), artifact_sweeps.c.id, cursor, limit)
        return [record(SweepRow, r) for r in (await self._connection.execute(query)).mappings()]

    async def forget_sweeps(self, older_than: timedelta) -> int:
        """Delete passes that were asked for so long ago."""
        old = artifact_sweeps.c.created_at < sa.func.now() - older_than
        return (await self._connection.execute(sa.delete(artifact_sweeps).where(old))).rowcount


def _due() -> list[sa.ColumnElement[bool]]:
    return [artifacts.c.state.in_(_LIVE), artifacts.c.expires_at <= sa.func.now()]
