"""Artifacts after they were made: expiry, orphans, missing objects; on real Postgres and S3."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from dagster import DagsterInstance, Definitions, RunConfig
from pydantic import SecretStr
from uuid_utils.compat import uuid7

from ops.artifacts import ArtifactsPass, collect, collect_artifacts
from resources import ObjectsResource, StoreResource
from vyvo_dagster.domain.job import JobState, Priority
from vyvo_dagster.domain.model import Modality
from vyvo_dagster.domain.retention import ArtifactState, SweepState
from vyvo_dagster.domain.workflow.state import RunState, TriggerKind
from vyvo_dagster.errors import NotFound, Unavailable
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.retention.expiry import expire_artifacts
from vyvo_dagster.retention.orphans import sweep_orphans
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.store.database import Store
from vyvo_dagster.store.tables import artifacts, jobs
from vyvo_dagster.store.workflow_tables import workflow_runs, workflow_versions, workflows

PAST = datetime.now(UTC) - timedelta(days=2)
# Objects are as old as the test; a pass of tomorrow judges them.
TOMORROW = timedelta(hours=25)


@dataclass
class House:
    """A database and buckets of its own, with artifacts in them."""

    store: StoreResource
    settings: S3Settings
    objects: ObjectStore = field(init=False)
    version_id: UUID = field(default_factory=uuid7)

    def __post_init__(self) -> None:
        self.objects = ObjectStore(self.settings)
        self.objects.ensure_buckets()

        async def add(db: Store) -> None:
            await db.models.ensure("t/m", "t")
            await db.models.start_building(
                id=self.version_id, model_id="t/m", version="1", template="x",
                modality=Modality.IMAGE, weights_uri=None, env={}, resources={}, build_id=uuid7(),
            )  # fmt: skip

        self.store.call(add)

    def job(self, state: JobState = JobState.SUCCEEDED, **values: Any) -> UUID:
        job_id = uuid7()

        async def add(db: Store) -> None:
            await db.jobs.add_many([{
                "id": job_id, "tenant": "t", "model_id": "t/m", "version_id": self.version_id,
                "version": "1", "priority": Priority.STANDARD, "input": {}, "max_attempts": 1,
                "expires_at": datetime.now(UTC) + timedelta(hours=1),
            }])  # fmt: skip
            change = sa.update(jobs).where(jobs.c.id == job_id)
            await db.connection.execute(change.values(state=state, **values))

        self.store.call(add)
        return job_id

    def ended_run(self, outputs: Any) -> None:
        """A workflow's run that has ended, with what it made."""
        workflow, version = uuid7(), uuid7()

        async def add(db: Store) -> None:
            await db.connection.execute(
                sa.insert(workflows).values(id=workflow, tenant="t", name="w", latest_version=1)
            )
            await db.connection.execute(
                sa.insert(workflow_versions).values(
                    id=version, workflow_id=workflow, version=1, definition={}, sha256="",
                    created_by="",
                )
            )  # fmt: skip
            await db.connection.execute(
                sa.insert(workflow_runs).values(
                    id=uuid7(), workflow_id=workflow, version_id=version, tenant="t",
                    state=RunState.SUCCEEDED, inputs={}, outputs=outputs,
                    trigger_kind=TriggerKind.API,
                )
            )  # fmt: skip

        self.store.call(add)

    def put(self, job_id: UUID, modality: Modality = Modality.IMAGE) -> str:
        key = self.objects.output_key(datetime.now(UTC), f"{job_id}.1", secrets.token_hex(32), ".x")
        return self.objects.put_bytes(self.objects.bucket(modality), key, b"12345")

    def row(self, job_id: UUID, url: str, position: int = 0, **values: Any) -> UUID:
        artifact_id = uuid7()
        row = {
            "id": artifact_id, "tenant": "t", "job_id": job_id, "position": position, "type": "image",
            "url": url, "size_bytes": 5, "mime_type": "x/x", "created_at": PAST, **values,
        }  # fmt: skip
        self.store.call(lambda db: db.artifacts.add_many([row]))
        return artifact_id

    def state(self, id: UUID) -> ArtifactState:
        found = self.store.call(lambda db: db.artifacts.get(id, None))
        assert found is not None
        return found.state

    def error(self, id: UUID) -> str | None:
        async def read(db: Store) -> str | None:
            query = sa.select(artifacts.c.delete_error).where(artifacts.c.id == id)
            return (await db.connection.execute(query)).scalar_one()

        return self.store.call(read)

    def exists(self, url: str) -> bool:
        try:
            self.objects.stat(url)
        except NotFound:
            return False
        return True


@pytest.fixture
def house(make_database: Callable[[str], str], s3_settings: S3Settings) -> Iterator[House]:
    prefix = f"t{secrets.token_hex(4)}-"
    store = StoreResource(dsn=make_database("migrated"))
    yield House(store, s3_settings.model_copy(update={"bucket_prefix": prefix}))
    store.close()


def test_what_has_come_to_its_end_goes_and_all_else_stays(house: House) -> None:
    job = house.job()
    old, kept, endless = (house.put(job) for _ in range(3))
    ended = house.row(job, old, 0, expires_at=PAST)
    lives = house.row(job, kept, 1, expires_at=datetime.now(UTC) + timedelta(days=1))
    never = house.row(job, endless, 2, expires_at=None)
    told = expire_artifacts(house.store, house.objects, dry_run=True)
    assert (told.expired, told.deleted) == (1, 0)
    assert house.exists(old)
    told = expire_artifacts(house.store, house.objects)
    assert (told.expired, told.deleted, told.deleted_bytes, told.failed) == (1, 1, 5, 0)
    assert house.state(ended) is ArtifactState.DELETED
    assert not house.exists(old)
    assert house.exists(kept)
    assert house.exists(endless)
    assert house.state(lives) is house.state(never) is ArtifactState.STORED
    assert expire_artifacts(house.store, house.objects).as_json() == {
        "expired": 0, "deleted": 0, "deleted_bytes": 0, "shared": 0, "failed": 0, "errors": {},
    }  # fmt: skip


def test_a_pass_that_died_is_finished_by_the_next(house: House) -> None:
    job = house.job()
    url = house.put(job)
    ended = house.row(job, url, expires_at=PAST)
    away = ObjectStore(house.settings.model_copy(update={"endpoint": "http://127.0.0.1:9"}))
    with pytest.raises(Unavailable):
        expire_artifacts(house.store, away)
    assert house.state(ended) is ArtifactState.EXPIRED
    assert house.exists(url)
    told = expire_artifacts(house.store, house.objects)
    assert (told.expired, told.deleted) == (0, 1)
    assert house.state(ended) is ArtifactState.DELETED


def test_what_cannot_be_deleted_is_told_and_tried_again(house: House) -> None:
    """A row that names weights, or somebody's bucket, never costs them an object."""
    job = house.job()
    weights = house.objects.put_bytes(
        house.objects.bucket(Modality.MODEL), "weights/sha256/ab", b"w"
    )
    lora = house.put(job, Modality.MODEL)
    bad = house.row(job, weights, 0, expires_at=PAST)
    foreign = house.row(job, "s3://another-bucket/2026/01/01/x/y", 1, expires_at=PAST)
    good = house.row(job, lora, 2, expires_at=PAST)
    for _ in range(2):
        told = expire_artifacts(house.store, house.objects)
        assert told.failed == 2
        assert set(told.errors) == {weights, "s3://another-bucket/2026/01/01/x/y"}
    assert house.exists(weights)
    assert not house.exists(lora)
    assert house.state(good) is ArtifactState.DELETED
    assert house.state(bad) is house.state(foreign) is ArtifactState.EXPIRED
    assert "none of the buckets" in (house.error(bad) or "")


def test_an_object_that_another_row_needs_stays(house: House) -> None:
    first, second = house.job(), house.job()
    url = house.put(first)
    ended = house.row(first, url, expires_at=PAST)
    lives = house.row(second, url, expires_at=None)
    told = expire_artifacts(house.store, house.objects)
    assert (told.deleted, told.shared) == (0, 1)
    assert house.exists(url)
    assert (house.state(ended), house.state(lives)) == (ArtifactState.DELETED, ArtifactState.STORED)


def test_orphans_go_and_whatever_a_row_refers_to_stays(house: House) -> None:
    ended, runs = house.job(JobState.FAILED), house.job(JobState.RUNNING)
    orphans = [house.put(ended), house.put(uuid7()), house.put(ended, Modality.MODEL)]
    known = house.put(ended)
    house.row(ended, known)
    of_running = house.put(runs)
    read_by_queued, told_by_output = house.put(uuid7()), house.put(ended)
    house.job(JobState.QUEUED, input={"picture": f"look at {read_by_queued}"})
    speaks = house.job(JobState.SUCCEEDED, output=None)
    said = house.put(speaks)

    async def say(db: Store) -> None:
        await db.connection.execute(
            sa.update(jobs).where(jobs.c.id == speaks).values(output={"at": said})
        )
        await db.connection.execute(
            sa.update(jobs).where(jobs.c.id == ended).values(output=[told_by_output])
        )

    house.store.call(say)
    of_step = house.put(uuid7())
    house.ended_run({"sheet": {"url": of_step}})
    bucket = house.objects.bucket(Modality.MODEL)
    others = [
        house.objects.put_bytes(bucket, key, b"x")
        for key in ("weights/sha256/cd", "locks/ab/requirements.lock", "builds/a/sbom.json")
    ]
    log = house.objects.put_bytes(house.objects.bucket(Modality.LOG), "2020/01/01/a/b", b"x")
    young = sweep_orphans(house.store, house.objects, now=datetime.now(UTC))
    assert (young.orphans, young.deleted, young.young) == (0, 0, 9)
    tomorrow = datetime.now(UTC) + TOMORROW
    dry = sweep_orphans(house.store, house.objects, now=tomorrow, dry_run=True)
    assert (dry.orphans, dry.orphan_bytes, dry.deleted, dry.spared) == (3, 15, 0, 5)
    assert set(dry.examples) == set(orphans)
    assert all(house.exists(url) for url in orphans)
    told = sweep_orphans(house.store, house.objects, now=tomorrow)
    assert (told.orphans, told.deleted, told.failed) == (3, 3, 0)
    assert not any(house.exists(url) for url in orphans)
    for url in (known, of_running, read_by_queued, told_by_output, said, of_step, *others, log):
        assert house.exists(url), url


def test_the_store_of_another_database_is_not_emptied(house: House) -> None:
    urls = [house.put(uuid7()) for _ in range(102)]
    tomorrow = datetime.now(UTC) + TOMORROW
    told = sweep_orphans(house.store, house.objects, now=tomorrow)
    assert told.refused is not None
    assert (told.orphans, told.deleted) == (102, 0)
    assert all(house.exists(url) for url in (urls[0], urls[-1]))
    assert sweep_orphans(house.store, house.objects, now=tomorrow, force=True).deleted == 102


def test_rows_without_an_object_are_marked_until_it_is_there_again(house: House) -> None:
    job = house.job()
    there, lost = house.put(job), house.put(job)
    kept, gone = house.row(job, there, 0), house.row(job, lost, 1)
    fresh = house.row(job, "s3://not-yet/looked-for", 2, created_at=datetime.now(UTC))
    house.objects.delete(lost)
    now = datetime.now(UTC)
    dry = sweep_orphans(house.store, house.objects, now=now, dry_run=True)
    assert (dry.rows_missing, dry.missing) == (1, [lost])
    assert house.state(gone) is ArtifactState.STORED
    told = sweep_orphans(house.store, house.objects, now=now)
    assert (told.rows_checked, told.rows_missing) == (2, 1)
    assert house.state(gone) is ArtifactState.MISSING
    assert house.state(kept) is house.state(fresh) is ArtifactState.STORED
    # Looked for once a grace: the next pass has nothing to look for.
    assert sweep_orphans(house.store, house.objects, now=now).rows_checked == 0
    bucket, _, key = lost.removeprefix("s3://").partition("/")
    house.objects.put_bytes(bucket, key, b"12345")

    async def long_ago(db: Store) -> None:
        await db.connection.execute(sa.update(artifacts).values(checked_at=PAST))

    house.store.call(long_ago)
    assert sweep_orphans(house.store, house.objects, now=now).rows_found_again == 1
    assert house.state(gone) is ArtifactState.STORED


def run(house: House, **config: Any) -> bool:
    s3 = house.settings
    secret: SecretStr = s3.secret_key
    resources = {
        "store": StoreResource(dsn=house.store.dsn),
        "objects": ObjectsResource(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=secret.get_secret_value(),
            region=s3.region, bucket_prefix=s3.bucket_prefix,
        ),
    }  # fmt: skip
    definitions = Definitions(jobs=[collect_artifacts], resources=resources)
    with DagsterInstance.ephemeral() as instance:
        return (
            definitions.resolve_job_def(collect_artifacts.name)
            .execute_in_process(
                instance=instance, raise_on_error=False,
                run_config=RunConfig({collect.name: ArtifactsPass(**config)}),
            ).success
        )  # fmt: skip


def test_a_run_keeps_its_report_in_a_row(house: House) -> None:
    job = house.job()
    house.row(job, house.put(job), expires_at=PAST)
    assert run(house)
    (made,) = house.store.call(lambda db: db.retention.sweeps(None, 10))
    assert made.state is SweepState.SUCCEEDED
    assert made.requested_by is None
    assert made.run_id is not None
    assert made.report is not None
    assert made.report["expiry"]["deleted"] == 1
    assert made.report["orphans"]["orphans"] == 0
    asked = uuid7()
    house.store.call(
        lambda db: db.retention.add_sweep(id=asked, dry_run=True, requested_by="vyk_abc")
    )
    assert run(house, sweep_id=str(asked), dry_run=True, orphans=False)
    done = house.store.call(lambda db: db.retention.sweep(asked))
    assert done is not None
    assert done.state is SweepState.SUCCEEDED
    # It has ended: nobody does it again.
    assert not run(house, sweep_id=str(asked), dry_run=True)


def test_a_run_that_leaves_something_behind_fails_and_says_what(house: House) -> None:
    job = house.job()
    house.row(job, "s3://another-bucket/x", expires_at=PAST)
    assert not run(house, orphans=False)
    (made,) = house.store.call(lambda db: db.retention.sweeps(None, 10))
    assert made.state is SweepState.FAILED
    assert made.error == "1 objects could not be deleted; the next pass tries again"
    assert made.report is not None
    assert made.report["expiry"]["errors"].keys() == {"s3://another-bucket/x"}
