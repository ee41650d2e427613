"""What starts workflow runs by itself: stored cron schedules, new artifacts, new model versions.

The runs are rows that the workflow engine drives, so a sensor asks Dagster for no run: it says what
it has started. A run that a trigger starts twice is one run, by its trigger key.
"""

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from dagster import DefaultSensorStatus, SensorDefinition, SkipReason, sensor

from resources import StoreResource
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.store.database import Store
from vyvo_dagster.workflows.triggers import Fired, fire_artifacts, fire_cron, fire_model_versions

__all__ = ["workflow_artifacts", "workflow_cron", "workflow_model_versions"]

_SECONDS: Final = 5

Fire = Callable[[Store, datetime], Coroutine[Any, Any, Fired]]


def _fire(store: StoreResource, fire: Fire) -> SkipReason:
    now = datetime.now(UTC)
    try:
        fired = store.call(lambda db: fire(db, now))
    except Unavailable as error:
        return SkipReason(f"tried again: {error.detail}")
    said = f"{fired.runs} workflow runs started"
    return SkipReason("; ".join([said, *(f"refused: {why}" for why in fired.refused)]))


def _trigger(name: str, fire: Fire, starts: str) -> SensorDefinition:
    @sensor(
        name=name,
        minimum_interval_seconds=_SECONDS,
        default_status=DefaultSensorStatus.RUNNING,
        description=f"Start workflow runs {starts}.",
    )
    def evaluate(store: StoreResource) -> SkipReason:
        return _fire(store, fire)

    return evaluate


workflow_cron: Final = _trigger("workflow_cron", fire_cron, "whose cron schedule is due")
"""One run for each trigger that is due, however many of its times were missed."""
workflow_artifacts: Final = _trigger("workflow_artifacts", fire_artifacts, "for new artifacts")
"""One run for each artifact and trigger that asks for it."""
workflow_model_versions: Final = _trigger(
    "workflow_model_versions", fire_model_versions, "for new model versions"
)
"""One run for each version that serves anew and trigger that asks for it."""
