"""`vyvo build` and `vyvo models` as processes, against the real api; what a worker does is played."""

import json
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from vyvo_dagster.domain.build import BuildState
from vyvo_dagster.domain.model import VersionState
from vyvo_dagster.store.database import Database

from .test_again import built
from .test_build_logs import write
from .test_builds import body
from .test_cli import Cli
from .world import Api, unique


@pytest.fixture
def cli(api: Api, tmp_path: Path) -> Cli:
    return Cli(api, tmp_path)


async def end(
    api: Api, database: Database, build_id: str, folder: Path, state: BuildState, error: str | None
) -> None:
    """What the run of a build leaves: its log, and its row."""
    log = write(api, build_id, folder / f"{build_id}.jsonl", 40)
    log.line("2/4", "\x1b[31mred\x1b[0m \x1b]0;title\x07 words")
    url = log.close(state)
    async with database.transaction() as store:
        await store.builds.update(UUID(build_id), state=BuildState.BUILDING)
        build = await store.builds.move(
            UUID(build_id), state, log_url=url, log_lines=log.lines, error=error
        )
        assert build is not None
        if state is BuildState.FAILED:
            await store.models.update(
                build.version_id, frozenset({VersionState.BUILDING}), {"state": VersionState.DRAFT}
            )


def submit(cli: Cli, model_id: str, *more: object) -> str:
    ran = cli.run(
        "build", "submit", model_id, "v1", "--template", "digits-diffusion",
        "--weights", "s3://vyvo-model/w.npz", "-e", "GREETING=a b", *more,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


async def test_a_build_from_its_submission_to_its_retry(
    cli: Cli, api: Api, database: Database, tmp_path: Path
) -> None:
    model_id = f"test/{unique('c')}"
    build_id = submit(cli, model_id, "--repo", "https://github.com/o/n", "--ref", "v1.0")
    shown = cli.json("build", "show", build_id)
    assert (shown["status"], shown["model_id"], shown["template"]) == (
        "queued", model_id, "digits-diffusion",
    )  # fmt: skip
    for command in (("build", "ls"), ("builds",)):
        (listed,) = cli.json(*command, "--model", model_id)["items"]
        assert listed["build_id"] == build_id
    row = cli.run("builds", "--model", model_id, "--status", "queued").stdout.splitlines()[1]
    assert row.split()[:4] == [build_id, "queued", f"{model_id}@v1", "digits-diffusion"]
    assert cli.run("builds", "--model", model_id, "--status", "failed").stdout == "no builds\n"

    said = "image: [2/4] RUN false: exit code: 1"
    await end(api, database, build_id, tmp_path, BuildState.FAILED, said)
    assert f"error      {said}" in cli.run("build", "show", build_id).stdout
    for command in ("build", "logs", build_id, "-f"), ("logs", build_id, "--follow"):
        followed = cli.run(*command)
        assert followed.returncode == 1
        assert followed.stderr.splitlines()[-1].endswith(f": {said}")
        lines = followed.stdout.splitlines()
        assert lines[0].startswith("[0/7] line 0 ")
        assert lines[-1] == "[2/4] [31mred[0m ]0;title words"
        assert "hush-hush" not in followed.stdout
    assert cli.run("build", "logs", build_id).stdout == followed.stdout
    rows = [json.loads(line) for line in cli.run("logs", build_id, "--json").stdout.splitlines()]
    assert [each["n"] for each in rows] == list(range(1, len(rows) + 1))

    again = cli.run("build", "retry", build_id)
    assert again.returncode == 0, again.stderr
    retried = again.stdout.strip()
    assert retried != build_id
    canceled = cli.run("build", "cancel", retried)
    assert canceled.stdout == f"build {retried} is canceled\n"
    assert cli.run("build", "cancel", retried).stdout == canceled.stdout


async def test_a_submission_that_is_followed_to_its_end(
    cli: Cli, api: Api, database: Database, tmp_path: Path
) -> None:
    following = cli.start(
        "build", "submit", f"test/{unique('c')}", "v1", "--template", "digits-diffusion",
        "--weights", "s3://vyvo-model/w.npz", "--follow",
    )  # fmt: skip
    assert following.stderr is not None
    build_id = following.stderr.readline().removeprefix("build ").strip()
    await end(api, database, build_id, tmp_path, BuildState.SUCCEEDED, None)
    out, said = following.communicate(timeout=60)
    assert following.returncode == 0, said
    assert out.splitlines()[-1] == "[2/4] [31mred[0m ]0;title words"
    assert said.startswith(f"build {build_id} has succeeded")


async def test_the_registry_of_models(cli: Cli, admin: httpx.Client, database: Database) -> None:
    _, sent = await built(admin, database, "a", env={"A": "1"})
    model_id = sent["model_id"]
    await built(admin, database, "b", model_id=model_id, version="v2", env={"A": "2", "B": "3"})
    assert model_id in {m["model_id"] for m in cli.json("models", "ls", "--limit", 200)["items"]}
    listed = cli.run("models", "versions", model_id).stdout.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["v2", "ready"], ["v1", "ready"]]
    for command, said in (
        (("promote", model_id, "v1"), f"{model_id}@v1 is active\n"),
        (("promote", model_id, "v2"), f"{model_id}@v2 is active\n"),
        (("rollback", model_id), f"{model_id}@v1 is active\n"),
        (("retire", model_id, "v2"), f"{model_id}@v2 is retired\n"),
    ):
        ran = cli.run("models", *command)
        assert (ran.returncode, ran.stdout) == (0, said), ran.stderr
    assert json.loads(cli.run("models", "show", model_id, "v1").stdout)["state"] == "active"
    differs = cli.run("models", "diff", model_id, "v1", "v2").stdout.splitlines()
    assert "env: + B ***" in differs
    assert "env: A *** -> ***" in differs
    assert any(line.startswith("image_digest: sha256:aaaa") for line in differs)
    same = cli.run("models", "diff", model_id, "v1", "v1").stdout
    assert same.splitlines()[-1] == "nothing but the names differs"
    history = cli.json("models", "history", model_id, "--limit", 3)
    assert [e["action"] for e in history["items"]] == ["version_update", "rollback", "promote"]
    rest = cli.run("models", "history", model_id, "--cursor", history["next_cursor"])
    assert len(rest.stdout.splitlines()) == 1 + 3
    rebuilt = cli.run("models", "rebuild", model_id, "v1")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert cli.json("build", "show", rebuilt.stdout.strip())["status"] == "queued"


def test_wrong_words_are_one_line(cli: Cli, admin: httpx.Client) -> None:
    sent = body()
    build_id = admin.post("/api/builds", json=sent).json()["build_id"]
    for arguments in (
        ("build", "show", uuid4()), ("logs", uuid4()), ("logs", uuid4(), "-f"),
        ("build", "cancel", uuid4()), ("build", "retry", build_id), ("build", "retry", uuid4()),
        ("build", "ls", "--cursor", "nonsense"),
        ("build", "submit", "no-owner", "v1", "--template", "digits-diffusion"),
        ("build", "submit", "o/n", "v1", "--template", "no-such"),
        ("build", "submit", "o/n", "v1", "--template", "digits-diffusion"),
        ("build", "submit", "o/n", "v1", "--template", "digits-diffusion", "-e", "LD_PRELOAD=x",
         "--weights", "s3://b/k"),
        ("build", "submit", "o/n", "v1", "--template", "digits-diffusion", "-e", "nothing"),
        ("models", "versions", "test/none"), ("models", "show", "../..", "v1"),
        ("models", "promote", "test/none", "v1"), ("models", "rollback", sent["model_id"]),
        ("models", "rebuild", sent["model_id"], "v1"), ("models", "diff", "test/none", "a", "b"),
        ("models", "retire", sent["model_id"], "$(id)"), ("models", "history", "test/none"),
    ):  # fmt: skip
        ran = cli.run(*arguments)
        assert ran.returncode == 1, arguments
        assert ran.stderr.count("\n") == 1, (arguments, ran.stderr)
        assert "Traceback" not in ran.stderr
    for arguments in (
        ("build", "show", "no-uuid"),
        ("logs", "../x"),
        ("build", "ls", "--limit", 0),
    ):
        ran = cli.run(*arguments)
        assert ran.returncode == 2, arguments
        assert "Traceback" not in ran.stderr
