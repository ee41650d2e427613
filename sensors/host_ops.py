"""`host_ops`: what a run that died left on the hosts goes, and pools keep one op to a GPU."""

from collections import Counter

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    SensorEvaluationContext,
    SkipReason,
    sensor,
)

from resources import DockerHostsResource
from vyvo_dagster.domain.host import POOL_LABEL
from vyvo_dagster.execution.names import gpu_pool
from vyvo_dagster.store.records import Node

__all__ = ["host_ops"]


@sensor(
    minimum_interval_seconds=30,
    default_status=DefaultSensorStatus.RUNNING,
    description="Remove containers of ended runs from the tagged hosts; set the limits of GPU pools.",
)
def host_ops(context: SensorEvaluationContext, docker_hosts: DockerHostsResource) -> SkipReason:
    """Starts no run: its answer says what it did."""
    resolver = docker_hosts.resolver()
    hosts = resolver.hosts()
    if not hosts:
        return SkipReason("no node has an engine that is reached from here")
    # Docker's libraries take a second, which only those pay who have hosts.
    from vyvo_dagster.execution.routing.engines import Engines
    from vyvo_dagster.execution.routing.sweep import sweep_finished

    changed = _limit_pools(context.instance, resolver.nodes())
    engines = Engines()
    try:
        answers = engines.each(hosts, lambda h: sweep_finished(engines, h, context.instance))
    finally:
        engines.close()
    removed = [f"{n} on {h.name}" for h, a in answers.items() if isinstance(a, list) for n in a]
    away = [f"{h.name}: {a}" for h, a in answers.items() if isinstance(a, Exception)]
    for line in away:
        context.log.warning("engine of %s", line)
    told = [("removed", removed), ("limited", changed), ("no answer from", away)]
    return SkipReason("; ".join(f"{k} {', '.join(v)}" for k, v in told if v) or "nothing to do")


def _limit_pools(instance: DagsterInstance, nodes: list[Node]) -> list[str]:
    """As many ops in a pool as it has GPUs; returns the pools whose limit changed.

    A pool without GPUs is left alone: its ops wait for a host, and say so.
    """
    wanted: Counter[str] = Counter()
    for node in nodes:
        count = sum(not gpu.get("lost") for gpu in node.capabilities.get("gpus", []))
        wanted[gpu_pool(host=node.name)] += count
        if (pool := node.labels.get(POOL_LABEL)) is not None:
            wanted[gpu_pool(pool=pool)] += count
    storage = instance.event_log_storage
    now = {limit.name: limit.limit for limit in storage.get_pool_limits()}
    changed = {n: c for n, c in wanted.items() if c > 0 and now.get(n) != c}
    for name, count in changed.items():
        storage.set_concurrency_slots(name, count)
    return [f"{name} to {count}" for name, count in sorted(changed.items())]
