"""Collecting artifacts: those whose end has come, objects without a row, rows without an object."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from dagster import Config, Failure, MetadataValue, OpExecutionContext, job, op
from pydantic import Field

from resources import ObjectsResource, StoreResource
from vyvo_dagster.domain.retention import GRACE, SweepState
from vyvo_dagster.errors import IllegalTransition
from vyvo_dagster.retention.expiry import expire_artifacts
from vyvo_dagster.retention.orphans import sweep_orphans

__all__ = ["ArtifactsPass", "collect_artifacts"]

_KEPT = timedelta(days=90)


class ArtifactsPass(Config):
    """What a pass does."""

    sweep_id: str | None = Field(
        default=None, description="Row of the pass that was asked for; unset makes one."
    )
    dry_run: bool = Field(default=False, description="Only tell what would be done.")
    orphans: bool = Field(
        default=True, description="Also look for objects without a row and rows without an object."
    )
    force: bool = Field(
        default=False,
        description="Delete orphans even where more than half of all objects are some.",
    )
    grace_hours: float = Field(
        default=GRACE.total_seconds() / 3600, ge=1,
        description="Younger objects may be of jobs that run, and are spared.",
    )  # fmt: skip


@op(description="Expire artifacts, delete their objects, and sweep objects without a row.")
def collect(
    context: OpExecutionContext,
    config: ArtifactsPass,
    store: StoreResource,
    objects: ObjectsResource,
) -> None:
    """Fails, with what was done in its metadata and in the row, where something could not be deleted."""
    sweep_id = _begin(context, config, store)
    report: dict[str, Any] = {}
    try:
        s3 = objects.store()
        expiry = expire_artifacts(store, s3, dry_run=config.dry_run, progress=context.log.info)
        report["expiry"] = expiry.as_json()
        failed = expiry.failed
        if config.orphans:
            swept = sweep_orphans(
                store, s3, now=datetime.now(UTC), dry_run=config.dry_run, force=config.force,
                grace=timedelta(hours=config.grace_hours), progress=context.log.info,
            )  # fmt: skip
            report["orphans"] = swept.as_json()
            failed += swept.failed
            if swept.refused is not None:
                context.log.error("no orphan was deleted: %s", swept.refused)
    except BaseException as error:
        _end(store, sweep_id, SweepState.FAILED, report, str(error)[:1000] or type(error).__name__)
        raise
    told = {"report": MetadataValue.json(report)}
    context.add_output_metadata(told)
    if failed:
        why = f"{failed} objects could not be deleted; the next pass tries again"
        _end(store, sweep_id, SweepState.FAILED, report, why)
        raise Failure(why, metadata=told, allow_retries=False)
    _end(store, sweep_id, SweepState.SUCCEEDED, report, None)


def _begin(context: OpExecutionContext, config: ArtifactsPass, store: StoreResource) -> UUID:
    # Of the first run of its retries, so that they go on with its row.
    sweep_id = UUID(config.sweep_id or context.run.root_run_id or context.run_id)
    if config.sweep_id is None:
        store.call(
            lambda db: db.retention.add_sweep(
                id=sweep_id, dry_run=config.dry_run, requested_by=None
            )
        )
        store.call(lambda db: db.retention.forget_sweeps(_KEPT))
    begun = store.call(
        lambda db: db.retention.move_sweep(sweep_id, SweepState.RUNNING, run_id=context.run_id)
    )
    if not begun:
        raise IllegalTransition(f"pass {sweep_id} is under way or has ended")
    return sweep_id


def _end(
    store: StoreResource, id: UUID, state: SweepState, report: dict[str, Any], error: str | None
) -> None:
    store.call(lambda db: db.retention.move_sweep(id, state, report=report, error=error))


@job(
    description="Expire artifacts, delete their objects, sweep objects without a row and rows without"
    " an object. By the hour and by the day; `vyvo artifacts gc` asks for one."
)
def collect_artifacts() -> None:
    """See collect."""
    collect()
