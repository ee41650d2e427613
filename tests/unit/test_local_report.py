"""What `vyvo up` prints holds no password, and a reader that is gone does no harm."""

import io

from vyvo_dagster.local.report import Report


def test_passwords_in_urls_are_not_shown() -> None:
    out = io.StringIO()
    report = Report(out)
    report.part("postgres", "ready", "postgresql://vyvo:hunter2@127.0.0.1:5432/vyvo", 0.94)
    report.part("redis", "ready", "redis://:hunter2@127.0.0.1:6379/0", 0.1)
    report.part("api", "ready", "http://127.0.0.1:8080", 1.0)
    lines = [line.partition("] ")[2] for line in out.getvalue().splitlines()]
    assert lines == [
        "postgres      ready    postgresql://vyvo@127.0.0.1:5432/vyvo  0.9 s",
        "redis         ready    redis://127.0.0.1:6379/0  0.1 s",
        "api           ready    http://127.0.0.1:8080  1.0 s",
    ]


def test_a_closed_output_is_no_error() -> None:
    out = io.StringIO()
    out.close()
    Report(out).part("api", "stopped")
