"""The store on real Postgres: migrations, builds' claims, idempotency, the outbox."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from vyvo_dagster.domain.build import BuildBackend
from vyvo_dagster.domain.model import Modality, VersionState
from vyvo_dagster.errors import Conflict, Unavailable, VersionExists
from vyvo_dagster.store.database import Database, Store
from vyvo_dagster.store.migrate import differences, upgrade


@pytest.fixture
async def database(postgres_dsn: str) -> AsyncIterator[Database]:
    database = Database(postgres_dsn, pool_size=3)
    yield database
    await database.close()


async def queued_build(store: Store) -> UUID:
    model_id, build_id = f"t/m{uuid7().hex[-12:]}", uuid7()
    await store.models.ensure(model_id, "t")
    version = await store.models.start_building(
        id=uuid7(),
        model_id=model_id,
        version="1",
        template="x",
        modality=Modality.IMAGE,
        weights_uri=None,
        env={},
        resources={},
        build_id=build_id,
    )
    await store.builds.add(
        id=build_id,
        tenant="t",
        model_id=model_id,
        version="1",
        version_id=version.id,
        runner_name="r",
        template="x",
        backend=BuildBackend.AUTO,
    )
    return build_id


async def test_migrations_give_the_tables_of_the_code(fresh_postgres_dsn: str) -> None:
    await asyncio.to_thread(upgrade, fresh_postgres_dsn)
    await asyncio.to_thread(upgrade, fresh_postgres_dsn)
    assert await asyncio.to_thread(differences, fresh_postgres_dsn) == []


async def test_a_version_is_built_once_and_a_failed_build_gives_it_back(database: Database) -> None:
    model_id = f"t/m{uuid7().hex[-12:]}"

    async def start() -> UUID:
        async with database.transaction() as store:
            await store.models.ensure(model_id, "t")
            version = await store.models.start_building(
                id=uuid7(),
                model_id=model_id,
                version="1",
                template="x",
                modality=Modality.IMAGE,
                weights_uri=None,
                env={},
                resources={},
                build_id=uuid7(),
            )
            return version.id

    version_id = await start()
    with pytest.raises(VersionExists, match="already built or being built"):
        await start()
    async with database.transaction() as store:
        assert await store.models.move(version_id, VersionState.DRAFT) is not None
    assert await start() == version_id


async def test_an_idempotency_key_gives_the_first_answer_and_refuses_another_request(
    database: Database,
) -> None:
    key = uuid7().hex
    async with database.transaction() as store:
        assert await store.idempotency.claim("t", key, "POST /x", b"1", {"n": 1}) is None
    async with database.transaction() as store:
        assert await store.idempotency.claim("t", key, "POST /x", b"1", {"n": 2}) == {"n": 1}
        assert await store.idempotency.claim("u", key, "POST /x", b"1", {"n": 3}) is None
        with pytest.raises(Conflict, match="another request"):
            await store.idempotency.claim("t", key, "POST /x", b"2", {"n": 4})


async def test_a_failed_request_leaves_neither_row_nor_key(database: Database) -> None:
    key = uuid7().hex
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with database.transaction() as store:
            await store.idempotency.claim("t", key, "POST /x", b"1", {"n": 1})
            build_id = await queued_build(store)
            raise RuntimeError
    async with database.transaction() as store:
        assert await store.builds.get(build_id) is None
        assert await store.idempotency.claim("t", key, "POST /x", b"1", {"n": 2}) is None


async def test_two_relays_take_each_entry_once(database: Database) -> None:
    stream = f"s{uuid7().hex}"
    async with database.transaction() as store:
        await store.outbox.add_many([(stream, {"n": str(n)}) for n in range(100)])

    async def take() -> list[str]:
        async with database.transaction() as store:
            found = await store.outbox.take(60)
            await asyncio.sleep(0.1)
            return [e.fields["n"] for e in found if e.stream == stream]

    first, second = await asyncio.gather(take(), take())
    assert sorted(map(int, first + second)) == list(range(100))


async def test_a_database_that_is_away_is_said_so() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none", pool_size=1)
    with pytest.raises(Unavailable, match="does not answer"):
        async with database.transaction():
            pass
    await database.close()
