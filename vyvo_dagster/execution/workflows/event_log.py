"""Batched writes into Dagster's Postgres storage, on one connection that holds the writer's lock.

Dagster's own path writes each event in several commits of its own, at a few hundred a second, and
logs from many threads. Here many runs are written by a few statements: their rows of `runs` and
their state, then their entries. The lock and the writes share the connection: who writes has the lock, and
what it remembers of having written is true for as long as the connection lives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from dagster import DagsterEventType, DagsterRun
from dagster._core.event_api import EventLogRecord
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.schema import AssetKeyTable, SqlEventLogStorageTable
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._serdes import deserialize_value, serialize_value
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.pool import NullPool

from vyvo_dagster.execution.workflows.events import Identity

__all__ = ["EventLog", "RunWrite"]

_LOCK: Final = 0x7679766F77  # "vyvow"
_E: Final = SqlEventLogStorageTable.c
_R: Final = RunsTable.c
_ENTRIES: Final = 200


@dataclass(frozen=True, slots=True)
class RunWrite:
    """What is to be written of one run: the run as it is now, and its new entries."""

    run: DagsterRun
    entries: Sequence[EventLogEntry]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class EventLog:
    """Writes while it has the lock.

    Args:
        url: SQLAlchemy URL of Dagster's database.
    """

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(
            url, poolclass=NullPool, connect_args={"connect_timeout": 5},
        )  # fmt: skip
        self._connection: sa.Connection | None = None

    def acquire(self) -> bool:
        """Whether this process is the writer; asks for the lock where it is not.

        Raises:
            sqlalchemy.exc.DBAPIError: the database is away; the lock is lost with the connection.
        """
        if self._connection is None:
            connection = self._engine.connect()
            try:
                locked = connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar()
                connection.execute(sa.text("set statement_timeout = '30s'"))
                connection.commit()
            except BaseException:
                connection.close()
                raise
            if not locked:
                connection.close()
                return False
            self._connection = connection
        return True

    def release(self) -> None:
        """Close the connection, and give the lock away with it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    def close(self) -> None:
        """Release, for good."""
        self.release()
        self._engine.dispose()

    def written(self, run_ids: Sequence[str]) -> dict[str, set[Identity]]:
        """What the log has of runs already."""
        found: dict[str, set[Identity]] = {run_id: set() for run_id in run_ids}
        query = sa.select(_E.run_id, _E.dagster_event_type, _E.step_key, _E.timestamp).where(
            _E.run_id.in_(run_ids)
        )
        with self._held.begin():
            for run_id, kind, key, at in self._held.execute(query):
                micros = round(at.replace(tzinfo=UTC).timestamp() * 1e6)
                found[run_id].add((kind, key, micros))
        return found

    def runs(self, run_ids: Sequence[str]) -> dict[str, DagsterRun]:
        """Those runs that Dagster has: of an earlier report, or started from its launchpad."""
        query = sa.select(_R.run_id, _R.run_body).where(_R.run_id.in_(run_ids))
        with self._held.begin():
            return {
                run_id: deserialize_value(body, DagsterRun)
                for run_id, body in self._held.execute(query)
            }

    def write(self, writes: Sequence[RunWrite]) -> None:
        """Write runs, and then their entries.

        Sensors read entries by id, and one that reads an id passes over smaller ones that are
        committed later. So entries are committed by the statement that gives out their ids and the
        one of their assets, in small batches, as Dagster's own are.

        Raises:
            sqlalchemy.exc.DBAPIError: it is not known what was written; `written` tells.
        """
        rows = [_event_row(entry) for write in writes for entry in write.entries]
        made = [entry for write in writes for entry in write.entries]
        runs = [_run_row(write) for write in writes]
        tags = [
            {"run_id": write.run.run_id, "key": key, "value": value}
            for write in writes
            for key, value in write.run.tags_for_storage().items()
        ]
        with self._held.begin():
            connection = self._held
            known = set(
                connection.execute(
                    sa.select(_R.run_id).where(_R.run_id.in_([r["run_id"] for r in runs]))
                ).scalars()
            )
            fresh = [row for row in runs if row["run_id"] not in known]
            if fresh:
                connection.execute(insert(RunsTable).on_conflict_do_nothing(), fresh)
                new = {row["run_id"] for row in fresh}
                connection.execute(
                    sa.insert(RunTagsTable), [tag for tag in tags if tag["run_id"] in new]
                )
            old = [_renamed(row) for row in runs if row["run_id"] in known]
            if old:
                connection.execute(_UPDATE_RUN, old)
        for start in range(0, len(rows), _ENTRIES):
            self._write_entries(rows[start : start + _ENTRIES], made[start : start + _ENTRIES])

    def _write_entries(
        self, rows: Sequence[dict[str, Any]], entries: Sequence[EventLogEntry]
    ) -> None:
        insertion = sa.insert(SqlEventLogStorageTable).returning(
            _E.id, sort_by_parameter_order=True
        )
        with self._held.begin():
            ids = list(self._held.execute(insertion, rows).scalars())
            assets = _last_materializations(entries, ids)
            if assets:
                self._held.execute(_UPSERT_ASSET, assets)

    @property
    def _held(self) -> sa.Connection:
        assert self._connection is not None
        return self._connection


_UPDATE_RUN = (
    sa.update(RunsTable)
    .where(_R.run_id == sa.bindparam("of"))
    .values(
        status=sa.bindparam("to_status"), run_body=sa.bindparam("to_body"),
        update_timestamp=sa.bindparam("to_update"), start_time=sa.bindparam("to_start"),
        end_time=sa.bindparam("to_end"),
    )
)  # fmt: skip

_new_asset = insert(AssetKeyTable)
_UPSERT_ASSET = _new_asset.on_conflict_do_update(
    index_elements=[AssetKeyTable.c.asset_key],
    set_={
        name: getattr(_new_asset.excluded, name)
        for name in ("last_materialization", "last_run_id", "last_materialization_timestamp")
    },
)


def _event_row(entry: EventLogEntry) -> dict[str, Any]:
    event = entry.get_dagster_event()
    key = event.asset_key
    return {
        "run_id": entry.run_id, "event": serialize_value(entry),
        "dagster_event_type": event.event_type_value,
        "timestamp": datetime.fromtimestamp(entry.timestamp, UTC).replace(tzinfo=None),
        "step_key": event.step_key, "asset_key": None if key is None else key.to_string(),
        "partition": None,
    }  # fmt: skip


def _run_row(write: RunWrite) -> dict[str, Any]:
    run, last = write.run, write.completed_at or write.started_at or write.created_at
    return {
        "run_id": run.run_id, "pipeline_name": run.job_name, "status": run.status.value,
        "run_body": serialize_value(run), "snapshot_id": run.job_snapshot_id, "partition": None,
        "partition_set": None, "create_timestamp": _naive(write.created_at),
        "update_timestamp": _naive(last), "start_time": _seconds(write.started_at),
        "end_time": _seconds(write.completed_at),
    }  # fmt: skip


def _renamed(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "of": row["run_id"], "to_status": row["status"], "to_body": row["run_body"],
        "to_update": row["update_timestamp"], "to_start": row["start_time"],
        "to_end": row["end_time"],
    }  # fmt: skip


def _last_materializations(
    entries: Sequence[EventLogEntry], ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The row of each asset that the entries materialize: by its last one."""
    found: dict[str, dict[str, Any]] = {}
    for entry, number in zip(entries, ids, strict=True):
        event = entry.get_dagster_event()
        if event.event_type is not DagsterEventType.ASSET_MATERIALIZATION:
            continue
        assert event.asset_key is not None
        key = event.asset_key.to_string()
        found[key] = {
            "asset_key": key,
            "last_materialization": serialize_value(EventLogRecord(number, entry)),
            "last_run_id": entry.run_id,
            "last_materialization_timestamp": datetime.fromtimestamp(entry.timestamp, UTC),
        }
    # In one order everywhere, so that two writers do not wait for each other in a circle.
    return [found[key] for key in sorted(found)]


def _naive(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
