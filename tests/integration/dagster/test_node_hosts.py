"""The registry's nodes as hosts of ops."""

from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from uuid_utils.compat import uuid7

from resources import StoreResource
from resources.docker_hosts import NodeHosts
from tests.integration.dagster.conftest import World
from vyvo_dagster.execution.hosts import HostEngines
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy, Placement, Unplaced

# One after the other: they share the engines, or keep both cores busy.
pytestmark = pytest.mark.xdist_group("hosts")

GIB = 1 << 30
FREE = Occupancy(frozenset(), 0)


def join(world: World, name: str, pool: str, *lost: str | None) -> UUID:
    """A node with one GPU for each of `lost`, which says why it cannot be used."""
    gpus = [
        {"index": i, "uuid": f"{name}-{i}", "name": "H100", "memory_bytes": 80 * GIB, "lost": why}
        for i, why in enumerate(lost)
    ]
    has = {"cpus": 8, "memory_bytes": 64 * GIB, "gpus": gpus}

    async def add(db):
        node_id, _ = await db.nodes.join(
            id=uuid7(), name=name, boot_id=uuid7(), labels={"pool": pool}, capabilities=has
        )
        return node_id

    return world.store.call(add)


def names() -> tuple[str, str, str]:
    mark = uuid7().hex[-8:]
    return f"a-{mark}", f"b-{mark}", f"pool-{mark}"


def test_engines_are_those_that_the_operator_named(world: World, tmp_path: Path) -> None:
    a, b, pool = names()
    join(world, a, pool)
    join(world, b, pool)
    (tmp_path / b).mkdir()
    (tmp_path / b / "cert.pem").touch()
    engines = {a: "unix:///run/a.sock", "*": "ssh://vyvo@{node}:22"}
    found = NodeHosts(world.store, HostEngines(engines, tmp_path)).hosts({"vyvo/pool": pool})
    assert set(found) == {
        DockerHost(a, "unix:///run/a.sock", tmp_path),
        DockerHost(b, f"ssh://vyvo@{b}:22", tmp_path / b),
    }
    assert [
        h.name for h in NodeHosts(world.store, HostEngines(engines)).hosts({"vyvo/host": b})
    ] == [b]
    assert [
        h.name
        for h in NodeHosts(world.store, HostEngines({a: "unix:///x"})).hosts({"vyvo/pool": pool})
    ] == [a]


def test_a_step_gets_limits_the_weights_and_gpus_that_work(world: World) -> None:
    a, b, pool = names()
    join(world, a, pool, "fell off the bus", None, None)
    hosts = NodeHosts(world.store, HostEngines({"*": "unix:///{node}"}, weights_dir="/cache"))
    tags = {"vyvo/pool": pool, "vyvo/gpu": "1", "vyvo/memory": "16GiB", "vyvo/cpus": "2"}
    placed = hosts.place(tags, {a: Occupancy(frozenset({f"{a}-1"}), 1)})
    assert placed == Placement(
        DockerHost(a, f"unix:///{a}"), (f"{a}-2",), 16 * GIB, 2.0, {"/cache": "/weights"}
    )
    held = Occupancy(frozenset({f"{a}-1", f"{a}-2"}), 2)
    assert hosts.place(tags, {a: held}) == Unplaced(
        f"no node is free for vyvo/pool={pool}, vyvo/gpu=1: {a} has no GPU free"
    )
    assert isinstance(hosts.place({"vyvo/host": b}, {}), Unplaced)


def test_a_name_that_is_none_gets_no_engine(world: World) -> None:
    _, _, pool = names()
    for name in ("-oProxyCommand=id", "a@evil.example", "a:22", "..", "a/../../b"):
        join(world, f"{name}", pool)
    engines = {"*": "ssh://vyvo@{node}:22"}
    try:
        assert NodeHosts(world.store, HostEngines(engines)).hosts({"vyvo/pool": pool}) == []
    finally:
        world.store.call(
            lambda db: db.connection.execute(
                sa.text("delete from nodes where labels->>'pool' = :pool"), {"pool": pool}
            )
        )


def test_a_cordoned_node_gets_nothing(world: World) -> None:
    a, _, pool = names()
    node_id = join(world, a, pool)
    world.store.call(lambda db: db.nodes.set_flags(node_id, cordoned=True))
    hosts = NodeHosts(world.store, HostEngines({"*": "unix:///{node}"}))
    outcome = hosts.place({"vyvo/pool": pool}, {a: FREE})
    assert outcome == Unplaced(f"no node is free for vyvo/pool={pool}: {a} is cordoned")


def test_a_node_without_an_engine_is_named(world: World) -> None:
    a, _, pool = names()
    join(world, a, pool)
    outcome = NodeHosts(world.store, HostEngines({})).place({"vyvo/host": a}, {})
    assert isinstance(outcome, Unplaced)
    assert f"no node matches vyvo/host={a}; VYVO_HOSTS_ENGINES names no engine of" in outcome.reason


def test_a_tag_without_meaning_is_an_error(world: World) -> None:
    hosts = NodeHosts(world.store, HostEngines({"*": "unix:///{node}"}))
    assert hosts.routes({"vyvo/gpu": "1GB"})
    assert not hosts.routes({"vyvo/memory": "1GiB"})
    with pytest.raises(ValueError, match="vyvo/gpu"):
        hosts.place({"vyvo/gpu": "1GB"}, {})


def test_without_a_registry_a_step_waits() -> None:
    store = StoreResource(dsn="postgresql://vyvo@127.0.0.1:1/vyvo")
    hosts = NodeHosts(store, HostEngines({"*": "unix:///{node}"}))
    assert hosts.hosts({"vyvo/host": "a"}) == []
    outcome = hosts.place({"vyvo/host": "a"}, {})
    hosts.close()
    assert isinstance(outcome, Unplaced)
    assert "the registry of nodes" in outcome.reason
