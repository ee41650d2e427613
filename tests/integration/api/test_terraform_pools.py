"""Pools by terraform: its command line, what it is given, and the plans that are refused."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from vyvo_dagster.settings import S3Settings

from .own_api import OwnApi, ended, operation, scale, scaled, until
from .world import JOIN_TOKEN, unique

STAND_IN = Path(__file__).with_name("terraform_stand_in.py")


@pytest.fixture(scope="module")
def own(
    postgres_dsn: str, redis_url: str, s3_settings: S3Settings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OwnApi]:  # fmt: skip
    root = tmp_path_factory.mktemp("own")
    program = root / "bin" / "terraform"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
    program.chmod(0o755)
    (root / "modules").mkdir()
    (root / "outside").mkdir()
    (root / "modules" / "link").symlink_to(root / "outside")
    api = OwnApi(
        root, postgres_dsn, redis_url, s3_settings, VYVO_TERRAFORM=str(program),
        VYVO_TERRAFORM_MODULES=str(root / "modules"), VYVO_TERRAFORM_SECONDS="3",
        TF_CLI_ARGS="-destroy",
    )  # fmt: skip
    try:
        api.start()
        yield api
    finally:
        api.close()


class Module:
    """A pool with a module of its own."""

    def __init__(self, own: OwnApi) -> None:
        self.own, self.name, self.module = own, unique("t"), unique("m")
        self.folder = own.root / "modules" / self.module
        self.folder.mkdir()
        made = self.put()
        assert made.status_code == 200, made.text

    def put(self, **scaler: Any) -> httpx.Response:
        asked = {"kind": "terraform", "module": self.module, "node_type": "aws_instance",
                 "attached_types": ["aws_eip"], "variables": {"instance_type": "p5.48xlarge"},
                 **scaler}  # fmt: skip
        body = {"max_size": 5, "join_seconds": 10, "scaler": asked}
        return self.own.client.put(f"/api/node-pools/{self.name}", json=body)

    def mode(self, text: str) -> None:
        (self.folder / "mode").write_text(text)

    def state(self) -> list[str]:
        file = self.folder / "terraform.tfstate"
        return json.loads(file.read_text())["nodes"] if file.exists() else []

    def size(self) -> int:
        return self.own.client.get(f"/api/node-pools/{self.name}").json()["size"]


@pytest.fixture
def pool(own: OwnApi) -> Module:
    return Module(own)


def test_machines_are_made_join_and_are_removed(own: OwnApi, pool: Module) -> None:
    one, two, three = (f"{pool.name}-{n}" for n in (1, 2, 3))
    tried = scaled(own, pool.name, 2, dry_run=True)
    assert tried["plan"]["create"] == [f'aws_instance.node["{n}"]' for n in (one, two)]
    assert "Plan: 2 to add, 0 to change, 0 to destroy." in tried["log"]
    assert (pool.state(), pool.size()) == ([], 0)
    done = scaled(own, pool.name, 3)
    assert f'aws_instance.node["{one}"]: Creating...' in done["log"]
    assert f"{three} has joined" in done["log"]
    assert pool.state() == [one, two, three]
    node = next(
        n for n in own.client.get("/api/nodes?limit=200").json()["items"] if n["name"] == three
    )
    done = scaled(own, pool.name, 2)
    assert done["plan"]["destroy"] == [f'aws_instance.node["{three}"]', f'aws_eip.node["{three}"]']
    assert pool.state() == [one, two]
    events = own.client.get(f"/api/nodes/{node['id']}/events").json()["items"]
    assert events[0]["kind"] == "draining"
    assert own.client.get(f"/api/nodes/{node['id']}").json()["state"] == "joining"
    files = sorted(p.name for p in (own.root / "terraform" / pool.name).iterdir())
    assert files == ["data", "pool.tfvars.json"]
    given = json.loads((own.root / "terraform" / pool.name / "pool.tfvars.json").read_text())
    assert given == {"instance_type": "p5.48xlarge", "node_names": [one, two],
                     "pool": pool.name, "size": 2}  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("greedy", "destroys 2 aws_instance and 1 may go"),
        ("replace", "the plan replaces aws_instance.node"),
        ("database", "destroys 1 aws_db_instance and 0 may go: aws_db_instance.db"),
        ("forget", "destroys 2 aws_instance and 1 may go"),
        ("count", "for_each = toset(var.node_names)"),
        ("swap", "destroys what no leaving node owns"),
        ("unasked", 'creates nodes that nobody asked for: aws_instance.node["another"]'),
    ],
)
def test_a_plan_that_does_more_than_was_asked_is_refused_before_anything_is_drained(
    own: OwnApi, pool: Module, mode: str, said: str
) -> None:
    scaled(own, pool.name, 2)
    before = pool.state()
    pool.mode(mode)
    failed = ended(own, pool.name, scale(own, pool.name, 1)["id"])
    assert (failed["status"], failed["error_code"]) == ("failed", "scaling_refused")
    assert said in failed["error"]
    assert "draining" not in failed["log"]
    assert pool.state() == before
    assert pool.size() == 2
    members = own.client.get(f"/api/node-pools/{pool.name}").json()["members"]
    assert [m["cordoned"] for m in members] == [False, False]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("broken", "terraform plan ended with status 1"),
        ("hang", "terraform plan took longer than 3 s"),
        ("nonsense", "the plan cannot be read"),
        ("errored", "the plan is not whole"),
        ("future", "the plan has format 9.0"),
    ],
)
def test_a_plan_that_cannot_be_made_fails_and_says_why(
    own: OwnApi, pool: Module, mode: str, said: str
) -> None:
    pool.mode(mode)
    failed = ended(own, pool.name, scale(own, pool.name, 1)["id"])
    assert (failed["status"], failed["error_code"]) == ("failed", "scaling_failed")
    assert said in failed["error"]
    assert pool.state() == []
    if mode == "broken":
        assert "Error: no credentials" in failed["log"]
    if mode == "hang":
        assert (pool.folder / "interrupted").exists()
    # Mended, it goes on.
    pool.mode("")
    scaled(own, pool.name, 1)


def test_the_log_streams_and_holds_no_secret(own: OwnApi, pool: Module) -> None:
    pool.mode("leak")
    done = scaled(own, pool.name, 1, dry_run=True)
    assert "token: ***" in done["log"]
    assert JOIN_TOKEN not in done["log"]
    pool.mode("hang")
    asked = scale(own, pool.name, 1)
    seen = until(
        lambda: "Acquiring state lock" in (o := operation(own, pool.name, asked["id"]))["log"] and o
    )
    assert seen["status"] == "planning"
    ended(own, pool.name, asked["id"])
    size = len(seen["log"])
    url = f"/api/node-pools/{pool.name}/operations/{asked['id']}?log_offset={size}"
    rest = own.client.get(url).json()
    assert rest["log"].startswith("failed: ")
    assert rest["log_size"] == size + len(rest["log"])


def test_an_api_that_stops_interrupts_terraform_and_the_next_goes_on(
    own: OwnApi, pool: Module
) -> None:
    pool.mode("hang")
    asked = scale(own, pool.name, 1)
    until(lambda: "Acquiring state lock" in operation(own, pool.name, asked["id"])["log"])
    own.stop(signal.SIGTERM)
    assert (pool.folder / "interrupted").exists()
    pool.mode("")
    own.start()
    assert ended(own, pool.name, asked["id"])["status"] == "succeeded"
    assert pool.state() == [f"{pool.name}-1"]


def test_what_a_pool_may_not_ask_of_terraform(own: OwnApi, pool: Module) -> None:
    for odd in (
        {"module": "../outside"}, {"module": "/etc"}, {"module": "-chdir=x"}, {"node_type": "a b"},
        {"variables": {"a b": 1}}, {"variables": {"node_names": []}}, {"program": "sh"},
    ):  # fmt: skip
        answer = pool.put(**odd)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), odd
    other = Module(own)
    taken = other.put(module=pool.module)
    assert (taken.status_code, taken.json()["code"]) == (409, "conflict")
    for absent in ("link", "absent"):
        assert other.put(module=absent).status_code == 200
        failed = ended(own, other.name, scale(own, other.name, 1)["id"])
        assert failed["error"] == f"no folder {absent} in VYVO_TERRAFORM_MODULES"
