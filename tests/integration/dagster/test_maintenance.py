"""The jobs that keep the house, and the training of the demo's model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from dagster import Definitions, materialize
from uuid_utils.compat import uuid7

from assets import digits_diffusion_training
from ops.maintenance import retention
from resources import BuildingResource
from tests.integration.dagster.conftest import World
from vyvo_dagster.building.weights import local_weights
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.store.database import Store


def test_retention_removes_scratch_of_ended_builds_only(world: World, tmp_path: Path) -> None:
    world.building = BuildingResource(
        data_dir=str(tmp_path), registry="127.0.0.1:5000", base_image="vyvo/base:bookworm"
    )
    running, ended = world.add_build(None, "1"), world.add_build(None, "2")
    world.store.call(lambda db: db.builds.move(ended.id, BuildState.FAILED, log_url="s3://b/k"))
    kept, removed = (world.building.scratch(str(build.id)) for build in (running, ended))
    unknown, foreign = world.building.scratch(str(uuid7())), tmp_path / "builds" / "no-uuid"
    foreign.mkdir()
    job = Definitions(jobs=[retention], resources=world.resources).resolve_job_def("retention")
    assert job.execute_in_process(instance=world.instance).success
    assert kept.is_dir()
    assert foreign.is_dir()
    assert not removed.exists()
    assert not unknown.exists()


def test_retention_deletes_records_that_are_old_and_over(world: World) -> None:
    build = world.add_build(None)
    job_id, node_id = uuid7(), uuid7()
    rows: dict[str, dict[UUID, bool]] = {
        table: {uuid7(): False, uuid7(): True}
        for table in ("webhook_deliveries", "dead_entries", "node_events")
    }
    pending = uuid7()  # tried since long ago, and still not over
    rows["webhook_deliveries"][pending] = False

    async def add(db: Store) -> None:
        await db.jobs.add_many([{
            "id": job_id, "tenant": "t", "model_id": build.model_id, "version": "1",
            "version_id": build.version_id, "priority": "standard", "state": "queued", "input": {},
            "max_attempts": 1, "expires_at": datetime.now(UTC) + timedelta(hours=1),
        }])  # fmt: skip
        await db.nodes.join(
            id=node_id, name=str(node_id), boot_id=node_id, labels={}, capabilities={}
        )
        statements = {
            "webhook_deliveries": "insert into webhook_deliveries (id, tenant, job_id, event, url,"
            " payload, state, created_at) values (:id, 't', :job, 'failed', 'x', '{}', :state,"
            " now() - make_interval(days => :days))",
            "dead_entries": "insert into dead_entries (id, stream, entry_id, fields, reason,"
            " created_at) values (:id, 's', cast(:id as text), '{}', 'r',"
            " now() - make_interval(days => :days))",
            "node_events": "insert into node_events (id, node_id, kind, detail, created_at)"
            " values (:id, :node, 'joined', '{}', now() - make_interval(days => :days))",
        }
        for table, statement in statements.items():
            for id_, gone in rows[table].items():
                values = {
                    "id": id_, "job": job_id, "node": node_id,
                    "state": "pending" if id_ == pending else "delivered",
                    "days": 100 if gone or id_ == pending else 20,
                }  # fmt: skip
                wanted = {n: v for n, v in values.items() if f":{n}" in statement}
                await db.connection.execute(sa.text(statement), wanted)

    world.store.call(add)
    job = Definitions(jobs=[retention], resources=world.resources).resolve_job_def("retention")
    assert job.execute_in_process(instance=world.instance).success

    async def left(db: Store) -> set[UUID]:
        found: set[UUID] = set()
        for table, ids in rows.items():
            query = sa.text(f"select id from {table} where id = any(:ids)")
            found |= set((await db.connection.execute(query, {"ids": list(ids)})).scalars())
        return found

    expected = {id_ for ids in rows.values() for id_, gone in ids.items() if not gone}
    assert world.store.call(left) == expected


def test_training_stores_measured_weights(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = materialize(
        [digits_diffusion_training],
        instance=world.instance,
        resources=world.resources,
        run_config={"ops": {"digits_diffusion_training": {"config": {"epochs": 60, "seed": 1}}}},
    )
    (made,) = result.asset_materializations_for_node("digits_diffusion_training")
    told = {name: value.value for name, value in made.metadata.items()}
    with capsys.disabled():
        print(f"\ntraining: {told['accuracy']:.1%} right after {told['train_seconds']} s")
    assert told["accuracy"] >= 0.95
    path = local_weights(
        str(told["weights_uri"]), str(told["sha256"]), world.objects.store(), tmp_path
    )
    assert path.stat().st_size == told["size_bytes"]
