"""What starts workflow runs by itself: stored cron schedules, new artifacts, new model versions.

The runs are rows that the workflow engine drives, so a sensor asks Dagster for no run: it says what
it has started. A run that a trigger starts twice is one run, by its trigger key.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from dagster import DefaultSensorStatus, SkipReason, sensor

from resources import StoreResource
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Store
from vyvo_dagster.workflows.triggers import Fired, fire_artifacts, fire_cron, fire_model_versions

__all__ = ["workflow_artifacts", "workflow_cron", "workflow_model_versions"]

_SECONDS = 5


def _fire(store: StoreResource, fire: Callable[[Store, datetime], Awaitable[Fired]]) -> SkipReason:
    now = datetime.now(UTC)
    try:
        fired = store.call(lambda db: fire(db, now))
    except Unavailable as error:
        return SkipReason(f"tried again: {error.detail}")
    said = f"{fired.runs} workflow runs started"
    return SkipReason("; ".join([said, *(f"refused: {why}" for why in fired.refused)]))


@sensor(
    minimum_interval_seconds=_SECONDS,
    default_status=DefaultSensorStatus.RUNNING,
    description="Start workflow runs whose cron schedule is due.",
)
def workflow_cron(store: StoreResource) -> SkipReason:
    """One run for each trigger that is due, however many of its times were missed."""
    return _fire(store, fire_cron)


@sensor(
    minimum_interval_seconds=_SECONDS,
    default_status=DefaultSensorStatus.RUNNING,
    description="Start workflow runs for new artifacts.",
)
def workflow_artifacts(store: StoreResource) -> SkipReason:
    """One run for each artifact and trigger that asks for it."""
    return _fire(store, fire_artifacts)


@sensor(
    minimum_interval_seconds=_SECONDS,
    default_status=DefaultSensorStatus.RUNNING,
    description="Start workflow runs for new model versions.",
)
def workflow_model_versions(store: StoreResource) -> SkipReason:
    """One run for each version that serves anew and trigger that asks for it."""
    return _fire(store, fire_model_versions)
