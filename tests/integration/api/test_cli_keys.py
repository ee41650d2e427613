"""`vyvo keys` and `vyvo audit` as processes, against the real api."""

from pathlib import Path

import pytest

from .test_cli import Cli
from .world import Api, unique


@pytest.fixture
def cli(api: Api, tmp_path: Path) -> Cli:
    return Cli(api, tmp_path)


def test_the_life_of_a_key(cli: Cli, api: Api) -> None:
    tenant = unique("t")
    ran = cli.run(
        "keys", "create", "gate\x1b[31mway", "--tenant", tenant, "--scope", "jobs:read",
        "--expires", "90d", "--rate", 5,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    key = ran.stdout.strip()
    prefix = key.split("_")[1]
    assert ran.stderr.startswith(f"{prefix} (gate[31mway), ends in 90 d")
    with api.client(key) as client:
        assert client.get("/api/jobs").status_code == 200
    (listed,) = cli.json("keys", "ls", "--tenant", tenant)["items"]
    assert (listed["prefix"], listed["limits"]["rate_per_second"]) == (prefix, 5)
    assert cli.run("keys", "ls", "--prefix", prefix).stdout.splitlines()[1].startswith(prefix)
    rotated = cli.json("keys", "rotate", prefix, "--overlap", "1h")
    with api.client(rotated["key"]) as client:
        assert client.get("/api/jobs").status_code == 200
    ran = cli.run("keys", "revoke", listed["id"])
    assert (ran.returncode, ran.stdout) == (0, f"{prefix} (gate[31mway) is revoked\n")
    with api.client(key) as client:
        assert client.get("/api/jobs").status_code == 401
    actions = [e["action"] for e in cli.json("audit", "--subject", prefix)["items"]]
    assert actions == ["key_rotate", "key_create"]
    shown = cli.run("audit", "--action", "key_rotate", "--subject", prefix).stdout
    assert "overlap_seconds" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["keys", "revoke", "ffffffff"], "no key begins with vyk_ffffffff"),
        (["keys", "rotate", "vyk_secret"], "eight hex digits"),
        (["keys", "create", "n", "--tenant", "No Tenant", "--scope", "admin"], "tenant"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, arguments: list[str], said: str) -> None:
    ran = cli.run(*arguments)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert said in ran.stderr


def test_a_node_scope_is_no_choice(cli: Cli) -> None:
    ran = cli.run("keys", "create", "n", "--tenant", "t", "--scope", "node")
    assert ran.returncode == 2
