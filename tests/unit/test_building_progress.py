"""BuildKit's rawjson progress as log lines."""

import base64
import json
from typing import Any

from vyvo_dagster.building.masking import CUT
from vyvo_dagster.building.progress import RawProgress

AT = "2026-11-24T16:00:0{}.000000000Z"


def status(**parts: Any) -> str:
    return json.dumps(parts)


def vertex(digest: str, name: str, **more: Any) -> dict[str, Any]:
    return {"digest": digest, "name": name, **more}


def log(digest: str, text: str, stream: int = 1) -> dict[str, Any]:
    return {"vertex": digest, "stream": stream, "data": base64.b64encode(text.encode()).decode()}


def test_a_step_begins_prints_and_ends_once_each() -> None:
    progress = RawProgress()
    began = vertex("d1", "[2/6] RUN echo hello", started=AT.format(1))
    ended = {**began, "completed": AT.format(3)}
    assert progress(status(vertexes=[vertex("d1", "[2/6] RUN echo hello")])) == []
    assert progress(status(vertexes=[began])) == [
        ("2/6", "[2/6] RUN echo hello", {"event": "started", "vertex": "d1"})
    ]
    # A line in two chunks is one line; the rest comes before the step's end.
    assert progress(status(logs=[log("d1", "hel")])) == []
    out = {"event": "output", "stream": 1}
    assert progress(status(logs=[log("d1", "lo\nlast")])) == [("2/6", "hello", out)]
    done = {"event": "done", "vertex": "d1", "seconds": 2.0}
    assert progress(status(vertexes=[ended])) == [("2/6", "last", out), ("2/6", "DONE 2.0s", done)]
    assert progress(status(vertexes=[ended])) == []


def test_a_failed_and_a_cached_step_say_so() -> None:
    progress = RawProgress()
    cached = vertex("d1", "[runner 1/2] FROM base", started=AT.format(1), completed=AT.format(1), cached=True)  # fmt: skip
    assert progress(status(vertexes=[cached]))[1][:2] == ("1/2", "CACHED")
    failed = vertex("d2", "[2/2] RUN false", started=AT.format(1), completed=AT.format(2), error="exit code: 1")  # fmt: skip
    shown = progress(status(vertexes=[failed]))[-1]
    assert shown == (
        "2/2",
        "ERROR: exit code: 1",
        {"event": "error", "vertex": "d2", "seconds": 1.0},
    )


def test_colours_are_kept_beside_the_text() -> None:
    progress = RawProgress()
    progress(status(vertexes=[vertex("d1", "[1/2] RUN x", started=AT.format(1))]))
    raw = "\x1b[1;31mred\x1b[0m \x1b]8;;http://x\x07link"
    assert progress(status(logs=[log("d1", f"{raw}\n", 2)])) == [
        ("1/2", "red link", {"event": "output", "stream": 2, "ansi": raw})
    ]


def test_layers_that_travel_are_told_of_every_five_seconds_and_at_the_end() -> None:
    progress = RawProgress()
    progress(status(vertexes=[vertex("d1", "exporting to image", started=AT.format(1))]))
    assert not progress.pushing
    layer = {"id": "pushing layer 4793", "vertex": "d1", "total": 190_840_000}
    shown = [
        line
        for second, current in enumerate([1_000_000, 2_000_000, 3_000_000])
        for line in progress(
            status(statuses=[{**layer, "current": current, "timestamp": AT.format(second * 4)}])
        )
    ]
    assert progress.pushing
    assert [text for _, text, *_ in shown] == ["pushing layer 4793 3.00MB / 190.84MB"]
    end = {**layer, "current": 190_840_000, "timestamp": AT.format(9), "completed": AT.format(9)}
    ((step, text, fields),) = progress(status(statuses=[end]))  # type: ignore[misc]
    assert (step, text) == ("export", "pushing layer 4793 190.84MB done")
    assert fields["current"] == fields["total"] == 190_840_000
    assert progress(status(statuses=[end])) == []


def test_an_object_over_several_lines_is_read_as_one() -> None:
    progress = RawProgress()
    began = vertex("d1", "[1/2] RUN x", started=AT.format(1))
    lines = json.dumps({"vertexes": [began]}, indent=2).splitlines()
    assert [shown for line in lines[:-1] for shown in progress(line)] == []
    assert progress(lines[-1]) == [("1/2", "[1/2] RUN x", {"event": "started", "vertex": "d1"})]
    # What comes in between ends it.
    progress("{")
    assert progress("ERROR: no") == [("image", "ERROR: no")]
    assert progress("}") == [("image", "}")]


def test_what_is_no_progress_is_a_line() -> None:
    progress = RawProgress()
    assert progress("ERROR: failed to solve: exit code: 1") == [
        ("image", "ERROR: failed to solve: exit code: 1")
    ]
    assert progress('{"vertexes": [' + CUT) == []


def test_a_line_without_end_is_cut_and_does_not_grow() -> None:
    progress = RawProgress()
    progress(status(vertexes=[vertex("d1", "[1/2] RUN x", started=AT.format(1))]))
    for _ in range(20):
        assert progress(status(logs=[log("d1", "x" * 100_000)])) == []
    ((_, text, _),) = progress(status(logs=[log("d1", "tail\n")]))  # type: ignore[misc]
    assert text == "x" * (1 << 20) + CUT
