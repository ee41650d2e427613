"""The log of a build: live in Redis, whole in the object store, each line once."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import redis

from vyvo_dagster.building.log import BuildLog
from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.errors import Unavailable
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings
from vyvo_dagster.streams import keys


class Place:
    """Where one build's log goes."""

    def __init__(self, spool: Path, connection: redis.Redis, store: ObjectStore) -> None:
        self.build_id = str(uuid4())
        self.spool = spool
        self.connection = connection
        self.store = store
        self.key = keys.build_log(self.build_id)

    def open(self, secrets: tuple[str, ...] = ()) -> BuildLog:
        return BuildLog(
            self.build_id, self.spool, self.connection, self.key, self.store, secrets=secrets
        )

    def streamed(self) -> list[dict[str, str]]:
        found = cast("list[Any]", self.connection.xrange(self.key))
        for entry_id, fields in found:
            assert entry_id == f"{fields['n']}-0"
        return [fields for _, fields in found]

    def stored(self, url: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.store.get_bytes(url).splitlines()]


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def place(tmp_path: Path, connection: redis.Redis, s3_settings: S3Settings) -> Place:
    return Place(tmp_path / "log.jsonl", connection, ObjectStore(s3_settings))


def test_lines_come_once_in_order_and_the_end_last(place: Place) -> None:
    log = place.open()
    for n in range(1, 1501):
        log.line("lock" if n % 2 else "venv", f"line {n}")
    url = log.close(BuildState.SUCCEEDED)
    *lines, end = place.streamed()
    assert [int(line["n"]) for line in lines] == list(range(1, 1501))
    assert [line["text"] for line in lines] == [f"line {n}" for n in range(1, 1501)]
    assert (end["n"], end["end"]) == ("1501", "succeeded")
    assert url.endswith(f"log/builds/{place.build_id}.log")
    stored = place.stored(url)
    assert [row["text"] for row in stored] == [line["text"] for line in lines]
    assert stored[0]["step"] == "lock"
    assert abs(stored[-1]["t"] - time.time()) < 60
    assert log.lines == 1500
    assert 0 < cast("int", place.connection.ttl(place.key)) <= 86400


def test_a_follower_sees_a_line_within_a_moment(place: Place) -> None:
    with place.open() as log:
        for n in range(1, 6):
            said = time.monotonic()
            log.line("step", "x")
            answer = place.connection.xread({place.key: f"{n - 1}-0"}, block=2000)
            assert answer
            assert time.monotonic() - said < 0.5
            time.sleep(0.02)


def test_the_next_process_goes_on_where_the_last_one_stopped(place: Place) -> None:
    first = place.open()
    first.line("weights", "one")
    first.detach()
    second = place.open()
    second.line("image", "two")
    url = second.close(BuildState.SUCCEEDED)
    assert [(row["n"], row["text"]) for row in place.stored(url)] == [(1, "one"), (2, "two")]
    assert [line["text"] for line in place.streamed()] == ["one", "two", ""]


def test_another_host_goes_on_from_what_redis_has(place: Place, tmp_path: Path) -> None:
    first = place.open()
    first.line("weights", "one")
    first.detach()
    place.spool = tmp_path / "other-host" / "log.jsonl"
    second = place.open()
    second.line("image", "two")
    assert [row["text"] for row in place.stored(second.close(BuildState.FAILED))] == ["one", "two"]


def test_after_a_flush_of_redis_the_stream_is_written_again(place: Place) -> None:
    first = place.open()
    first.line("a", "one")
    first.detach()
    place.connection.delete(place.key)
    second = place.open()
    second.line("b", "two")
    second.flush()
    assert [line["text"] for line in place.streamed()] == ["one", "two"]
    second.detach()


def test_half_a_line_of_a_killed_process_is_dropped(place: Place) -> None:
    first = place.open()
    first.line("a", "one")
    first.detach()
    with place.spool.open("a") as spool:
        spool.write('{"n": 2, "t": 1.0, "st')
    second = place.open()
    second.line("a", "two")
    assert [row["text"] for row in place.stored(second.close(BuildState.FAILED))] == ["one", "two"]


def test_closing_twice_adds_no_second_end(place: Place) -> None:
    log = place.open()
    log.line("a", "one")
    assert log.close(BuildState.FAILED) == log.close(BuildState.FAILED)
    log.line("a", "too late")
    assert [line.get("end") for line in place.streamed()] == [None, "failed"]


def test_what_comes_after_the_end_is_dropped(place: Place) -> None:
    first = place.open()
    first.line("a", "one")
    first.close(BuildState.FAILED)
    late = place.open()
    late.line("run", "too late")
    url = late.close(BuildState.FAILED)
    assert [row["text"] for row in place.stored(url)] == ["one"]
    assert [line.get("end") for line in place.streamed()] == [None, "failed"]


def test_secrets_are_masked_everywhere(place: Place) -> None:
    log = place.open(secrets=("hunter", "hunter22", "", "ab"))
    log.line("env", "TOKEN=hunter22 and hunter; ab stays\nsecond hunter22")
    url = log.close(BuildState.SUCCEEDED)
    everything = place.spool.read_text() + json.dumps(place.streamed()) + str(place.stored(url))
    assert "hunter" not in everything
    assert [row["text"] for row in place.stored(url)] == [
        "TOKEN=*** and ***; ab stays",
        "second ***",
    ]


def test_long_lines_are_split_and_odd_text_survives(place: Place) -> None:
    log = place.open()
    long = "ä" * 20000
    log.line("a", long)
    log.line("a", "")
    log.line("a", "tab\t\x1b[31mred\x00 \ud800 end")
    rows = place.stored(log.close(BuildState.SUCCEEDED))
    pieces = [row["text"] for row in rows[:3]]
    assert "".join(pieces) == long
    assert max(len(piece.encode()) for piece in pieces) <= 16 << 10
    assert rows[3]["text"] == ""
    assert rows[4]["text"] == "tab\t\x1b[31mred\x00 ? end"
    assert [line["text"] for line in place.streamed()][:-1] == [row["text"] for row in rows]


def test_a_redis_that_goes_away_loses_no_line(place: Place, connection: redis.Redis) -> None:
    log = place.open()
    log.line("a", "one")
    log.flush()
    connection.client_kill_filter(skipme=True, _type="normal")
    for n in range(200):
        log.line("a", f"more {n}")
    log.close(BuildState.SUCCEEDED)
    texts = [line["text"] for line in place.streamed()]
    assert texts == ["one", *(f"more {n}" for n in range(200)), ""]


def test_a_log_without_redis_says_so_when_opened(tmp_path: Path, s3_settings: S3Settings) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    away = redis.Redis(host="127.0.0.1", port=port, socket_timeout=1)
    with pytest.raises(Unavailable, match="Redis does not answer"):
        BuildLog("x", tmp_path / "log.jsonl", away, "vyvo:test", ObjectStore(s3_settings))
