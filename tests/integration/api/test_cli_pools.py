"""`vyvo pools` as a process, against a real api whose pools are agents of this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from vyvo_dagster.settings import S3Settings

from .own_api import OwnApi, agents, until
from .test_cli import BARE, Cli
from .world import unique


@pytest.fixture(scope="module")
def own(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnApi]:  # fmt: skip
    api = OwnApi(tmp_path_factory.mktemp("own"), postgres_dsn, redis_url, s3_settings)
    try:
        api.start()
        yield api
    finally:
        api.close()


@pytest.fixture
def cli(own: OwnApi, tmp_path: Path) -> Cli:
    made = Cli.__new__(Cli)
    made.home = tmp_path
    made.env = BARE | {"VYVO_API_URL": own.env["VYVO_API_URL"],
                       "VYVO_API_KEY": own.env["VYVO_ADMIN_KEY"]}  # fmt: skip
    return made


def test_a_pool_is_made_planned_scaled_and_shown(cli: Cli, own: OwnApi) -> None:
    name = unique("p")
    body = json.dumps({"max_size": 2, "scaler": {"kind": "local"}})
    made = cli.run("pools", "put", name, "-", stdin=body)
    assert (made.returncode, made.stdout.splitlines()[0]) == (0, "nodes      0, of 0 to 2")
    planned = cli.run("pools", "scale", name, 1, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout == f"keep       none\nadd        {name}-1\nremove     none\n"
    assert f"  start agent {name}-1\n" in planned.stderr
    assert name not in str(agents(own.root))
    done = cli.run("pools", "scale", name, "--by", 1)
    assert (done.returncode, done.stdout) == (0, f"{name} has 1 nodes\n"), done.stderr
    assert f"  {name}-1 has joined" in done.stderr.splitlines()
    assert done.stderr.splitlines()[-1] == "succeeded, from 0 to 1 nodes"
    assert name in cli.run("pools", "ls").stdout
    shown = cli.run("pools", "show", name).stdout
    assert f"node       {name}-1: ready, runs 0\n" in shown
    assert "0 to 1, succeeded" in shown
    assert "0 to 1 (dry run), succeeded" in shown
    operation = cli.json("pools", "scale", name, 0)
    assert (operation["status"], operation["plan"]["remove"]) == ("succeeded", [f"{name}-1"])
    again = cli.run("pools", "follow", name, operation["id"])
    assert again.returncode == 0
    assert f"  drained {name}-1" in again.stderr.splitlines()
    until(lambda: f"{name}-1" not in agents(own.root))


def test_a_change_that_fails_is_a_failed_command(cli: Cli) -> None:
    name = unique("p")
    cli.run("pools", "put", name, "-", stdin='{"max_size": 99, "scaler": {"kind": "local"}}')
    failed = cli.run("pools", "scale", name, 99)
    assert (failed.returncode, failed.stdout) == (1, "")
    last = failed.stderr.splitlines()[-1]
    assert last.startswith(f"the change of {name} has failed: scaling_refused: ")
    assert "VYVO_LOCAL_AGENTS" in last


def test_a_policy_is_changed_in_parts(cli: Cli) -> None:
    name = unique("p")
    cli.run("pools", "put", name, "-", stdin='{"max_size": 4, "scaler": {"kind": "local"}}')
    told = cli.run("pools", "policy", name, "--target", 20, "--cool-down", 60)
    assert told.returncode == 0, told.stderr
    assert "target     20 waiting jobs to a node\n" in told.stdout
    pool = cli.json("pools", "policy", name, "--max", 8, "--model", "vyvo/digits")
    assert (pool["max_size"], pool["queue_depth_target"], pool["cool_down_seconds"]) == (8, 20, 60)
    assert pool["models"] == ["vyvo/digits"]
    assert pool["scaler"]["kind"] == "local"
    pool = cli.json("pools", "policy", name, "--target", "off", "--all-models")
    assert (pool["queue_depth_target"], pool["models"], pool["max_size"]) == (None, [], 8)
    assert (
        "wants      stay: the pool has no queue depth target"
        in cli.run("pools", "policy", name).stdout
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pools", "show", "absent"], "no node pool absent"),
        (["pools", "show", "../keys"], ""),
        (["pools", "scale", "absent"], "give either a size or --by"),
        (["pools", "scale", "absent", 1, "--by", 1], "give either a size or --by"),
        (["pools", "scale", "absent", 1], "no node pool absent"),
        (["pools", "policy", "absent", "--target", "many"], "--target 'many' is neither"),
        (["pools", "policy", "absent", "--all-models", "--model", "a/b"], "give either --model"),
        (["pools", "put", "absent", "no-such-file"], "no-such-file"),
    ],
)
def test_what_is_wrong_is_one_line(cli: Cli, arguments: list[object], says: str) -> None:
    ran = cli.run(*arguments)
    assert ran.returncode != 0
    assert says in ran.stderr
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert "Traceback" not in ran.stderr


def test_help_has_examples(cli: Cli) -> None:
    for command in ("ls", "show", "scale", "follow", "policy", "put"):
        assert "Example" in cli.run("pools", command, "--help").stdout
