"""What a person who follows a job is shown of its events."""

import io

from vyvo_dagster.cli.following import _View
from vyvo_dagster.cli.output import LiveLine
from vyvo_dagster.client import Client, Event


def test_the_loading_of_the_model_is_shown_as_it_goes_on() -> None:
    out = io.StringIO()
    with Client("http://127.0.0.1:1", "none") as client, LiveLine(out) as line:
        view = _View(client, line)
        for data in (
            {"node": "gpu-01", "state": "pulling"},
            {"node": "gpu-01", "state": "loading"},
            {"node": None, "state": "failed", "detail": "no room"},
        ):
            view.take(Event("1-0", "loading", data))
    assert out.getvalue().splitlines() == [
        "loading the model on gpu-01: pulling",
        "loading the model on gpu-01: loading",
        "loading the model: failed: no room",
    ]
