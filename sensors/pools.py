"""`node_pools`: pools follow their queues."""

from datetime import UTC, datetime

from dagster import DefaultSensorStatus, SensorEvaluationContext, SkipReason, sensor

from resources import StoreResource
from vyvo_dagster.scaling.policy import follow

__all__ = ["node_pools"]


@sensor(
    minimum_interval_seconds=15,
    default_status=DefaultSensorStatus.RUNNING,
    description="Ask for the size that each node pool's policy wants; an api process scales it.",
)
def node_pools(context: SensorEvaluationContext, store: StoreResource) -> SkipReason:
    """Starts no run: what is asked for is an operation of the pool, with its own progress."""
    told: list[str] = []
    for seen, operation in store.call(lambda db: follow(db, datetime.now(UTC))):
        name, size = seen.pool.name, len(seen.members)
        if operation is None:
            told.append(f"{name} stays at {size}: {seen.decision.reason}")
        else:
            told.append(f"{name} from {size} to {operation.size}: {operation.reason}")
            context.log.info(told[-1])
    return SkipReason("; ".join(told) or "no node pool waits for its policy")
