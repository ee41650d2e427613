"""The `vyvo` command as a process, against the real api."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.store.database import Database

from .faulty_proxy import FaultyProxy, answering
from .test_nodes import submit
from .world import Agent, Api, Version, dispatch, load

VYVO = [sys.executable, "-m", "vyvo_dagster.cli"]
BARE = {k: v for k, v in os.environ.items() if not k.startswith("VYVO_")}


class Cli:
    """Runs commands against one api."""

    def __init__(self, api: Api, home: Path) -> None:
        self.home = home
        self.env = BARE | {"VYVO_API_URL": api.url, "VYVO_API_KEY": api.admin_key}

    def run(
        self, *arguments: object, stdin: str = "", env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*VYVO, *map(str, arguments)], env=self.env if env is None else env, cwd=self.home,
            input=stdin, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def start(self, *arguments: object, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*VYVO, *map(str, arguments)], env=self.env, cwd=self.home, text=True,
            stdout=subprocess.PIPE, **{"stderr": subprocess.PIPE, **options},
        )  # fmt: skip

    def json(self, *arguments: object) -> Any:
        ran = self.run(*arguments, "--json")
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("\n") == 1
        return json.loads(ran.stdout)


@pytest.fixture
def cli(api: Api, tmp_path: Path) -> Cli:
    return Cli(api, tmp_path)


def first_line(process: "subprocess.Popen[str]") -> str:
    """The job's id, which the command says before all else."""
    assert process.stderr is not None
    return process.stderr.readline().removeprefix("job ").strip()


async def play(
    agent: Agent, database: Database, job_id: str, assignment_id: UUID, status: str = "succeeded",
    **values: Any,
) -> None:  # fmt: skip
    """Run a job as a node would."""
    job = await dispatch(database, job_id, agent, assignment_id)
    path = f"/api/jobs/{job.id}/progress"
    agent.post(path, {"attempt": job.attempt})
    agent.post(path, {"attempt": job.attempt, "fraction": 0.5, "logs": ["half \x1b[31mway"]})
    answer = agent.complete(job.id, job.attempt, status, **values)
    assert answer.status_code == 200, answer.text


def test_submitting_list_show_cancel(cli: Cli, version: Version) -> None:
    ran = cli.run("submit", version.model_id, "-i", "digit=7", "-i", 'note="8"', "--ttl", 60)
    assert ran.returncode == 0, ran.stderr
    job_id = ran.stdout.strip()
    assert str(UUID(job_id)) == job_id
    assert ran.stderr.startswith("queued, position 1 (no ready node has")
    shown = cli.json("job", job_id)
    assert (shown["input"], shown["priority"]) == ({"digit": 7, "note": "8"}, "standard")
    (cli.home / "in.json").write_text('{"digit": 1, "note": "x"}')
    second = cli.json(
        "submit", version.model_id, "--file", "in.json", "-i", "digit=2", "--priority", "batch",
        "--version", "v1",
    )  # fmt: skip
    assert cli.json("job", second["job_id"])["input"] == {"digit": 2, "note": "x"}
    third = cli.run("submit", version.model_id, "--file", "-", stdin='{"digit": 3}').stdout.strip()

    page = cli.json("jobs", "--model", version.model_id, "--limit", 2)
    assert [j["job_id"] for j in page["items"]] == [third, second["job_id"]]
    rest = cli.run("jobs", "--model", version.model_id, "--cursor", page["next_cursor"])
    assert job_id in rest.stdout
    assert third not in rest.stdout
    assert rest.stderr == ""
    text = cli.run("job", second["job_id"]).stdout
    assert re.search(r"^status +queued, position \d$", text, re.MULTILINE)

    canceled = cli.run("cancel", job_id, "nonsense", third)
    assert canceled.returncode == 1
    assert canceled.stdout == f"{job_id} canceled\n{third} canceled\n"
    assert canceled.stderr.startswith("vyvo cancel: nonsense: ")
    assert canceled.stderr.count("\n") == 1
    assert len(cli.json("jobs", "--model", version.model_id, "--status", "canceled")["items"]) == 2


def test_dead_letters_and_requeue(cli: Cli, admin: httpx.Client, version: Version) -> None:
    job_id, waits = submit(admin, version), submit(admin, version)
    assert cli.run("cancel", job_id).returncode == 0
    ran = cli.run("requeue", job_id, waits, "--priority", "interactive", "--ttl", 60)
    assert ran.returncode == 1
    assert ran.stdout == f"{job_id} queued, position 1\n"
    assert ran.stderr.startswith(f"vyvo requeue: {waits}: the job is queued")
    assert cli.json("job", job_id)["priority"] == "interactive"
    assert cli.run("dead-letters", "--model", version.model_id).stdout == "no dead letters\n"
    assert cli.json("dead-letters", "--model", version.model_id)["items"] == []


async def test_a_followed_job_shows_its_way_and_saves_its_artifacts(
    cli: Cli, api: Api, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    process = cli.start("submit", version.model_id, "-i", "digit=1", "--output", "out")
    job_id = first_line(process)
    picture = cli.home / "picture"
    picture.write_bytes(b"\x89PNG not really")
    bucket = f"{api.s3.bucket_prefix}image"
    artifact = {"type": "image", "url": f"s3://{bucket}/{job_id}/picture.png", "size_bytes": 16,
                "mime_type": "image/png"}  # fmt: skip
    ObjectStore(api.s3).put_file(bucket, f"{job_id}/picture.png", picture)
    await play(agent, database, job_id, assignment_id, artifacts=[artifact])
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out == "out/00-picture.png\n"
    assert (cli.home / "out" / "00-picture.png").read_bytes() == picture.read_bytes()
    lines = err.splitlines()
    assert lines[0].startswith("queued, position 1")
    assert f"running on {agent.name}" in lines
    assert "  half [31mway" in lines, "no escape of a runner reaches the terminal"
    assert lines[-1].startswith("succeeded, followed for ")


async def test_a_failed_job_is_a_failed_command(
    cli: Cli, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    process = cli.start("submit", version.model_id, "-i", "digit=1", "--follow", "--json")
    job_id = first_line(process)
    error = {"code": "prediction_failed", "message": "no\nsuch digit"}
    await play(agent, database, job_id, assignment_id, "failed", error=error)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert json.loads(out)["error"] == error
    assert err.splitlines()[-1] == f"job {job_id} has failed: prediction_failed: no such digit"
    shown = cli.run("job", job_id).stdout
    assert f"attempt    1 on {agent.id}: failed (prediction_failed: no such digit)" in shown
    again = cli.run("job", job_id, "--follow")
    assert (again.returncode, again.stdout) == (1, "")


async def test_on_a_terminal_progress_is_one_line(
    cli: Cli, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job_id = submit(admin, version)
    ours, theirs = pty.openpty()
    process = cli.start("job", job_id, "--follow", stderr=theirs)
    os.close(theirs)
    await play(agent, database, job_id, assignment_id, output={"seed": 1})
    out, _ = process.communicate(timeout=20)
    seen = b""
    try:
        while some := os.read(ours, 65536):
            seen += some
    except OSError:
        pass  # the terminal is gone with its last user
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(out) == {"seed": 1}
    text = seen.decode()
    assert "[############............]  50%" in text
    assert text.count("\r\x1b[2K") >= 4
    assert text.rstrip().endswith("s")


def test_ctrl_c_says_how_to_go_on(cli: Cli, version: Version) -> None:
    process = cli.start("submit", version.model_id, "-i", "digit=1", "--follow")
    job_id = first_line(process)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert f"vyvo job {job_id} --follow" in err
    assert "Traceback" not in err
    assert cli.json("job", job_id)["status"] == "queued"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["submit", "none/such", "-i", "a=1"], "no model none/such"),
        (["submit", "MODEL", "-i", "digit=99"], "99"),
        (["submit", "MODEL", "-i", "digit=1", "-i", "digit=2"], "given twice"),
        (["submit", "MODEL", "-i", "digit"], "KEY=VALUE"),
        (["submit", "MODEL", "-i", "digit=NaN"], "NaN"),
        (["submit", "MODEL", "--file", "none.json"], "none.json"),
        (["submit", "MODEL", "--file", "list.json"], "no JSON object"),
        (["job", "00000000-0000-7000-8000-000000000000"], "no such job"),
        (["job", "../keys"], ""),
        (["jobs", "--model", "nonsense"], "nonsense"),
        (["jobs", "--url", "http://127.0.0.1:9"], "cannot reach the api"),
        (["jobs", "--url", "file:///etc/passwd"], "no http"),
        (["jobs", "--key", "wrong"], "key"),
        (["jobs", "--url", "http://h:abc"], "is no URL"),
        (["jobs", "--url", "http://"], "no http"),
        (["submit", "MODEL", "-i", "digit=1e999"], "1e999"),
        (["submit", "MODEL", "--file", "large.json"], "not JSON"),
        (["submit", "MODEL", "--file", "deep.json"], "too deep"),
        (["submit", "MODEL", "--file", "latin.json"], "not JSON"),
        (["submit", "MODEL", "-i", "digit=\udcff"], "not UTF-8"),
        (["submit", "MODEL", "-i", "digit=1", "--version", "\udcff"], "cannot be sent"),
    ],
)
def test_an_error_is_one_line(
    cli: Cli, version: Version, arguments: list[str], says: str
) -> None:  # fmt: skip
    (cli.home / "list.json").write_text("[1]")
    (cli.home / "large.json").write_text('{"digit": 1e999}')
    (cli.home / "deep.json").write_text("[" * 100_000)
    (cli.home / "latin.json").write_bytes(b'{"digit": "\xe9"}')
    ran = cli.run(*(version.model_id if a == "MODEL" else a for a in arguments))
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith(f"vyvo {arguments[0]}: ")
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert says in ran.stderr


def test_the_local_stack_is_found_by_its_directory(cli: Cli, api: Api, version: Version) -> None:
    ran = cli.run("jobs", env=BARE)
    assert ran.returncode == 1
    assert "vyvo up" in ran.stderr
    home = cli.home / ".vyvo"
    home.mkdir()
    (home / "ports.json").write_text(json.dumps({"api": int(api.url.rpartition(":")[2])}))
    (home / "secrets.json").write_text(json.dumps({"admin_key": api.admin_key}))
    found = cli.run("jobs", "--model", version.model_id, env=BARE)
    assert (found.returncode, found.stdout) == (0, "no jobs\n")
    (home / "ports.json").write_text("{")
    assert cli.run("jobs", env=BARE).returncode == 1


def test_another_server_is_not_mistaken_for_the_api(cli: Cli) -> None:
    import http.server

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ran = cli.run("jobs", "--url", f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["job", "x"], ["submit", "a/b", "-i", "digit=1"]])
@pytest.mark.parametrize("status", ["404 Not Found", "302 Found"])
def test_what_a_stranger_says_moves_no_cursor(
    cli: Cli, api: Api, arguments: list[str], status: str
) -> None:
    body = b'{"code": "no", "detail": "a\\u001b[2Jb\\u202ec"}'
    proxy = FaultyProxy(api.url)
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    proxy.faults += [answering(head.encode() + body)]
    ran = cli.run(*arguments, "--url", proxy.url)
    proxy.close()
    assert ran.returncode == 1
    assert ran.stderr.endswith(": a[2Jbc\n")


def test_the_detail_of_a_submission_moves_no_cursor(cli: Cli, api: Api) -> None:
    body = json.dumps({"job_id": str(UUID(int=1)), "status": "queued", "queue_position": 1,
                       "eta_seconds": None, "detail": "wait\x1b[2J"}).encode()  # fmt: skip
    proxy = FaultyProxy(api.url)
    head = f"HTTP/1.1 202 Accepted\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    proxy.faults += [answering(head.encode() + body)]
    ran = cli.run("submit", "a/b", "-i", "digit=1", "--url", proxy.url)
    proxy.close()
    assert (ran.returncode, ran.stderr) == (0, "queued, position 1 (wait[2J)\n")


async def test_a_failure_told_by_a_runner_moves_no_cursor(
    cli: Cli, admin: httpx.Client, agent: Agent, version: Version, database: Database
) -> None:
    assignment_id = await load(admin, agent, version)
    job = await dispatch(database, submit(admin, version), agent, assignment_id)
    error = {"code": "prediction_failed", "message": "no\x1b[2J"}
    assert agent.complete(job.id, 1, "failed", error=error).status_code == 200
    ran = cli.run("job", job.id, "--follow")
    assert ran.returncode == 1
    assert "no[2J" in ran.stderr
    assert "\x1b" not in ran.stderr + ran.stdout


def test_the_command_starts_without_the_extras_libraries() -> None:
    code = (
        "import sys; from vyvo_dagster.cli import submit, jobs, following;"
        "print([m for m in ('redis', 'minio', 'docker', 'fastapi') if m in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert ran.stdout == "[]\n"


def test_the_queue_and_its_weights(
    cli: Cli, api: Api, admin: httpx.Client, version: Version
) -> None:
    ids = [submit(admin, version) for _ in range(3)]
    (mine,) = cli.json("queue", "show", "--model", version.model_id)["items"]
    assert (mine["depth"], mine["in_flight"], mine["weight"]) == (3, 0, 1.0)
    shown = cli.run("queue", "show", "--model", version.model_id)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.endswith("3 waiting, 0 in flight\n")
    assert f"{version.model_id}@{version.name}" in cli.run("queue").stdout

    given = cli.run("queue", "set-weight", "admin", "4", "--model", version.model_id)
    assert given.stdout == f"admin weighs 4 for {version.model_id}\n", given.stderr
    assert cli.json("queue", "show", "--model", version.model_id)["items"][0]["weight"] == 4.0
    assert version.model_id in cli.run("queue", "weights").stdout
    assert cli.run("queue", "unset-weight", "admin", "--model", version.model_id).returncode == 0
    again = cli.run("queue", "unset-weight", "admin", "--model", version.model_id)
    assert (again.returncode, again.stderr) == (1, "vyvo queue unset-weight: no such weight\n")

    for wrong in ("0", "1001", "nan", "many"):
        refused = cli.run("queue", "set-weight", "admin", wrong)
        assert refused.returncode != 0, wrong
        assert "Traceback" not in refused.stderr
    assert cli.run("cancel", *ids).returncode == 0
    assert cli.run("queue", "show", "--model", version.model_id).stdout.startswith("nothing waits")


def test_the_queue_is_shown_again_until_ctrl_c(
    cli: Cli, admin: httpx.Client, version: Version
) -> None:
    watching = cli.start("queue", "show", "--model", version.model_id, "--watch", "0.2")
    assert watching.stdout is not None
    with watching:
        assert watching.stdout.readline().startswith("nothing waits")
        job_id = submit(admin, version)
        lines = iter(watching.stdout.readline, "")
        assert any(line == "1 waiting, 0 in flight\n" for line in lines)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert watching.stderr is not None
        assert watching.stderr.read() == ""
    assert cli.run("cancel", job_id).returncode == 0
