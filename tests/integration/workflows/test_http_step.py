"""HTTP steps: what is sent, what comes back, and where they may not go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.workflows.world import World
from vyvo_dagster.domain.workflow.state import RunState


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server of one answer; its URL, and the requests that it got."""
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        size = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n")
                     if line.startswith(b"content-length")), 0)  # fmt: skip
        got.append(head + await reader.readexactly(size))
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", got


async def run_one(world: World, **given: object) -> tuple[RunState, object, str | None]:
    version = await world.push(
        [{"name": "ask", "operation": "http", "input": given}],
        outputs={"answer": "${{ steps.ask.output }}"},
    )
    run = await world.ended(await world.start(version))
    steps = await world.steps(run.id)
    return run.state, run.outputs, steps["ask"].error_message


async def test_json_goes_and_comes(world: World) -> None:
    body = b'{"n": [1, 2]}'
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    async with answering(answer % (len(body), body)) as (url, got):
        state, outputs, _ = await run_one(
            world, url=f"{url}/x", method="POST", body={"a": 1},
            headers={"X-One": "1", "Idempotency-Key": "mine", "Host": "elsewhere"},
        )  # fmt: skip
    assert state is RunState.SUCCEEDED
    assert isinstance(outputs, dict)
    assert (outputs["answer"]["status"], outputs["answer"]["body"]) == (200, {"n": [1, 2]})
    (sent,) = got
    assert sent.startswith(b"POST /x HTTP/1.1")
    assert sent.endswith(b'{"a":1}')
    assert b"x-one: 1" in sent.lower()
    assert b"mine" not in sent
    assert b"elsewhere" not in sent
    assert sent.lower().count(b"idempotency-key: ") == 1


async def test_a_bad_status_and_too_large_an_answer_fail_the_step(world: World) -> None:
    async with answering(b"HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nbusy") as (url, _):
        state, _, error = await run_one(world, url=url)
    assert state is RunState.FAILED
    assert error == "it answered 503: busy"
    huge = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 3_000_000
    async with answering(huge) as (url, _):
        state, _, error = await run_one(world, url=url)
    assert state is RunState.FAILED
    assert error is not None
    assert "more than 1048576 bytes" in error


async def test_addresses_inside_are_refused(world: World) -> None:
    for url in ("http://169.254.169.254/latest", "https://10.0.0.1/", "http://[::ffff:10.0.0.1]/"):
        state, _, error = await run_one(world, url=url)
        assert state is RunState.FAILED
        assert error is not None
