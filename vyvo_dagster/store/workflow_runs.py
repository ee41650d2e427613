"""Runs of workflows and their steps."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from vyvo_dagster.domain.job import JOB, Priority
from vyvo_dagster.domain.workflow.run import RunEnd, Step
from vyvo_dagster.domain.workflow.state import RUN, STEP, RunState, TriggerKind
from vyvo_dagster.store.notify import WORKFLOW_CHANNEL, notify
from vyvo_dagster.store.records import Job
from vyvo_dagster.store.rows import page, record
from vyvo_dagster.store.tables import jobs
from vyvo_dagster.store.workflow_records import WorkflowRun
from vyvo_dagster.store.workflow_tables import (
    workflow_runs,
    workflow_steps,
    workflow_versions,
    workflows,
)

__all__ = ["WorkflowRunRepository"]

_R = workflow_runs.c
_S = workflow_steps.c
_RUNS = (
    sa.select(workflow_runs, workflows.c.name, workflow_versions.c.version)
    .join(workflows, workflows.c.id == _R.workflow_id)
    .join(workflow_versions, workflow_versions.c.id == _R.version_id)
)


_COLUMNS = tuple(field.name for field in fields(Step))
_KEPT = frozenset({"id", "run_id", "key", "name", "map_index", "created_at"})


def _upsert() -> sa.TextClause:
    """The rows travel as one JSON parameter: one statement, the same for any number of them."""
    types = dict.fromkeys(("attempts", "input", "output", "placement"), "jsonb") | {"state": "text"}
    columns = workflow_steps.c
    shape = ", ".join(
        f"{name} {types.get(name) or columns[name].type.compile(dialect=postgresql.dialect())}"
        for name in _COLUMNS
    )
    names = ", ".join(_COLUMNS)
    changed = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS if name not in _KEPT)
    ends = ", ".join(f"'{state}'" for state in sorted(STEP.terminal))
    return sa.text(
        f"insert into workflow_steps ({names}) "  # noqa: S608 - names of our columns
        f"select {names} from jsonb_to_recordset(cast(:rows as jsonb)) as given ({shape}) "
        f"on conflict (run_id, key) do update set {changed} "
        f"where workflow_steps.state not in ({ends})"
    )


_UPSERT = _upsert()


def _text(value: object) -> object:
    """What JSON has no type for: ids, times, and tuples of earlier attempts."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _open() -> sa.ColumnElement[bool]:
    return _R.state.not_in(RUN.terminal)


def _due() -> sa.ColumnElement[bool]:
    """No engine has it, or its engine's lease has ended."""
    return sa.and_(
        _open(), sa.or_(_R.lease_expires_at.is_(None), _R.lease_expires_at < sa.func.now())
    )


class WorkflowRunRepository:
    """SQL over workflow_runs and workflow_steps."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def create(
        self, *, id: UUID, workflow_id: UUID, version_id: UUID, tenant: str,
        inputs: Mapping[str, Any], trigger_kind: TriggerKind, trigger_key: str | None,
        priority: Priority | None, steps: Sequence[Step], retry_of: UUID | None = None,
        dagster_run_id: str | None = None, traceparent: str | None = None,
    ) -> tuple[WorkflowRun, bool]:  # fmt: skip
        """Queue a run with its steps; or the run that the trigger key has started before, and False.

        Engines are told of it by `WORKFLOW_CHANNEL` when the transaction commits. Its run in
        Dagster has its id unless another is given.
        """
        made = await self._connection.execute(
            insert(workflow_runs)
            .values(
                id=id, workflow_id=workflow_id, version_id=version_id, tenant=tenant,
                state=RunState.QUEUED, inputs=dict(inputs), trigger_kind=trigger_kind,
                trigger_key=trigger_key, priority=priority, retry_of=retry_of,
                dagster_run_id=dagster_run_id or str(id), traceparent=traceparent,
            )
            .on_conflict_do_nothing()
            .returning(_R.id)
        )  # fmt: skip
        if made.scalar() is None:
            known = sa.and_(_R.workflow_id == workflow_id, _R.trigger_key == trigger_key)
            same = sa.or_(known, _R.dagster_run_id == (dagster_run_id or str(id)))
            found = await self._one(_RUNS.where(same).order_by(_R.id).limit(1))
            assert found is not None
            return found, False
        await self.upsert_steps(steps)
        await notify(self._connection, WORKFLOW_CHANNEL, f"run:{id}")
        run = await self.get(id, None)
        assert run is not None
        return run, True

    async def get(self, id: UUID, tenant: str | None, *, lock: bool = False) -> WorkflowRun | None:
        """One run, of `tenant` unless that is None; with `lock` nobody changes it before the commit."""
        query = _RUNS.where(_R.id == id)
        if lock:
            query = query.with_for_update(of=workflow_runs, key_share=True)
        if tenant is not None:
            query = query.where(_R.tenant == tenant)
        return await self._one(query)

    async def of_dagster(self, dagster_run_id: str) -> WorkflowRun | None:
        """The run that a Dagster run shows."""
        return await self._one(_RUNS.where(_R.dagster_run_id == dagster_run_id))

    async def of_trigger(self, workflow_id: UUID, trigger_key: str) -> WorkflowRun | None:
        """The run that a trigger key has started."""
        return await self._one(
            _RUNS.where(_R.workflow_id == workflow_id, _R.trigger_key == trigger_key)
        )

    async def has_open_retry(self, id: UUID) -> bool:
        """Whether a retry of a run is under way."""
        query = sa.select(sa.exists().where(_R.retry_of == id, _open()))
        return bool((await self._connection.execute(query)).scalar_one())

    async def browse(
        self, tenant: str | None, cursor: UUID | None, limit: int, *,
        workflow_id: UUID | None = None, name: str | None = None, state: RunState | None = None,
        trigger_kind: TriggerKind | None = None,
    ) -> list[WorkflowRun]:  # fmt: skip
        """Newest first, of `tenant` unless that is None; one more than `limit`."""
        query = _RUNS
        for column, value in (
            (_R.tenant, tenant), (_R.workflow_id, workflow_id), (workflows.c.name, name),
            (_R.state, state), (_R.trigger_kind, trigger_kind),
        ):  # fmt: skip
            if value is not None:
                query = query.where(column == value)
        rows = await self._connection.execute(page(query, _R.id, cursor, limit))
        return [record(WorkflowRun, r) for r in rows.mappings()]

    async def request_cancel(self, id: UUID) -> bool:
        """Note that a run is to be canceled and tell its engine; False where it has ended."""
        done = await self._connection.execute(
            sa.update(workflow_runs)
            .where(_R.id == id, _open())
            .values(
                cancel_requested_at=sa.func.coalesce(_R.cancel_requested_at, sa.func.now()),
                revision=_R.revision + 1,
            )
        )
        if done.rowcount:
            await notify(self._connection, WORKFLOW_CHANNEL, f"run:{id}")
        return done.rowcount > 0

    async def claim(self, engine: UUID, lease: timedelta, limit: int) -> list[WorkflowRun]:
        """Take up to `limit` runs that no engine has, or whose engine's lease has ended, oldest first.

        A queued one is running from now on.
        """
        due = (
            sa.select(_R.id)
            .where(_due())
            .order_by(_R.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        claimed = await self._connection.execute(
            sa.update(workflow_runs)
            .where(_R.id.in_(due))
            .values(
                engine_id=engine, lease_expires_at=sa.func.now() + lease, state=RunState.RUNNING,
                started_at=sa.func.coalesce(_R.started_at, sa.func.now()),
                revision=sa.case((_R.state == RunState.QUEUED, _R.revision + 1), else_=_R.revision),
            )
            .returning(_R.id)
        )  # fmt: skip
        ids = list(claimed.scalars())
        if not ids:
            return []
        rows = await self._connection.execute(_RUNS.where(_R.id.in_(ids)).order_by(_R.id))
        return [record(WorkflowRun, r) for r in rows.mappings()]

    async def any_due(self) -> bool:
        """Whether `claim` may have passed over a run since somebody held it for a moment."""
        due = await self._connection.scalar(sa.select(sa.exists().where(_due())))
        return bool(due)

    async def renew(self, engine: UUID, lease: timedelta) -> set[UUID]:
        """Renew the leases of an engine's runs; the ids of those that are still its own.

        One whose lease has ended is still its own while nobody has taken it.
        """
        done = await self._connection.execute(
            sa.update(workflow_runs)
            .where(_R.engine_id == engine, _open())
            .values(lease_expires_at=sa.func.now() + lease)
            .returning(_R.id)
        )
        return set(done.scalars())

    async def release(self, engine: UUID) -> int:
        """Give back an engine's runs at once, as it stops; returns how many."""
        done = await self._connection.execute(
            sa.update(workflow_runs)
            .where(_R.engine_id == engine, _open())
            .values(engine_id=None, lease_expires_at=None)
        )
        return done.rowcount

    async def hold(self, engine: UUID, ids: Collection[UUID]) -> dict[UUID, WorkflowRun]:
        """Those of `ids` that are still the engine's and open, locked until the commit: its fence."""
        query = (
            _RUNS.where(_R.id.in_(list(ids)), _R.engine_id == engine, _open())
            .order_by(_R.id)
            .with_for_update(of=workflow_runs, key_share=True)
        )
        rows = (await self._connection.execute(query)).mappings()
        return {row["id"]: record(WorkflowRun, row) for row in rows}

    async def touch(self, ids: Collection[UUID]) -> None:
        """Raise the revision of runs whose steps have changed."""
        await self._connection.execute(
            sa.update(workflow_runs).where(_R.id.in_(list(ids))).values(revision=_R.revision + 1)
        )

    async def end(self, ends: Mapping[UUID, RunEnd]) -> None:
        """End runs, in one statement."""
        if not ends:
            return
        given = sa.values(
            sa.column("id", _R.id.type), sa.column("state", sa.Text), sa.column("outputs", _R.outputs.type),
            sa.column("error_code", sa.Text), sa.column("error_message", sa.Text), name="given",
        ).data([
            (run_id, end.state.value, end.outputs, end.error_code, end.error_message)
            for run_id, end in ends.items()
        ])  # fmt: skip
        await self._connection.execute(
            sa.update(workflow_runs)
            .where(_R.id == given.c.id, _R.state.in_(RUN.before(RunState.FAILED)))
            .values(
                state=given.c.state, outputs=given.c.outputs, error_code=given.c.error_code,
                error_message=given.c.error_message, completed_at=sa.func.now(),
                revision=_R.revision + 1, engine_id=None, lease_expires_at=None,
            )
        )  # fmt: skip

    async def unreported(self, limit: int) -> list[WorkflowRun]:
        """Runs of which Dagster does not know all, the oldest first.

        Not locked: an engine that is just about to claim one would pass it over.
        """
        query = _RUNS.where(_R.revision > _R.reported_revision).order_by(_R.id).limit(limit)
        rows = await self._connection.execute(query)
        return [record(WorkflowRun, r) for r in rows.mappings()]

    async def reported(self, revisions: Mapping[UUID, int]) -> None:
        """Note up to which revision Dagster was told of runs."""
        if revisions:
            await self._connection.execute(
                sa.update(workflow_runs)
                .where(_R.id == sa.bindparam("run"))
                .values(
                    reported_revision=sa.func.greatest(_R.reported_revision, sa.bindparam("to"))
                ),
                [{"run": run_id, "to": to} for run_id, to in revisions.items()],
            )

    async def steps_of(self, run_ids: Collection[UUID]) -> dict[UUID, dict[str, Step]]:
        """Run id → key → step of each run, in the order that they were made."""
        found: dict[UUID, dict[str, Step]] = {run_id: {} for run_id in run_ids}
        query = sa.select(workflow_steps).where(_S.run_id.in_(list(run_ids))).order_by(_S.id)
        for row in (await self._connection.execute(query)).mappings():
            found[row["run_id"]][row["key"]] = record(Step, row)
        return found

    async def upsert_steps(self, rows: Sequence[Step]) -> None:
        """Write steps as they are, in one statement; one that has ended stays as it ended."""
        if not rows:
            return
        given = [{name: getattr(row, name) for name in _COLUMNS} for row in rows]
        await self._connection.execute(_UPSERT, {"rows": json.dumps(given, default=_text)})

    async def ended_jobs(self, run_ids: Collection[UUID]) -> list[Job]:
        """Jobs that have ended while their steps have not: what an engine may have missed."""
        query = (
            sa.select(jobs)
            .join(workflow_steps, _S.job_id == jobs.c.id)
            .where(
                _S.run_id.in_(list(run_ids)),
                _S.state.not_in(STEP.terminal),
                jobs.c.state.in_(JOB.terminal),
            )
        )
        return [record(Job, r) for r in (await self._connection.execute(query)).mappings()]

    async def step_of_job(self, job_id: UUID) -> Step | None:
        """The step that a job is an attempt of."""
        query = (
            sa.select(workflow_steps)
            .join(jobs, jobs.c.workflow_step_id == _S.id)
            .where(jobs.c.id == job_id)
        )
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(Step, row)

    async def _one(self, query: sa.Select[Any]) -> WorkflowRun | None:
        row = (await self._connection.execute(query)).mappings().first()
        return None if row is None else record(WorkflowRun, row)
