"""Secrets of a real OpenBao server, and what becomes of them when it is sealed or away."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hvac
import hvac.exceptions
import pytest
import requests
from pydantic import SecretStr

from resources import BuildingResource
from vyvo_dagster.errors import InvalidInput, Unavailable
from vyvo_dagster.security.providers import make_secrets
from vyvo_dagster.security.secrets import EnvironmentSecrets, RegistryLogin
from vyvo_dagster.security.vault import VaultSecrets
from vyvo_dagster.settings import Settings
from vyvo_dagster.settings_vault import VaultSettings

from .api.fronts import free_port

SERVER = """
path "secret/data/vyvo/*" { capabilities = ["read"] }
path "auth/token/create" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "secret/data/vyvo/hidden" { capabilities = ["deny"] }
"""
NODE = 'path "secret/data/vyvo/registries/*" { capabilities = ["read"] }'


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bao:
    """A server with its storage in memory; sealed, it forgets nothing until it is stopped."""

    home: Path
    process: "subprocess.Popen[bytes] | None" = None
    url: str = ""
    root: Any = None
    unseal_key: str = ""
    approle: dict[str, Any] = field(default_factory=dict[str, Any])

    def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        config = self.home / "bao.hcl"
        config.write_text(
            f'storage "inmem" {{}}\nlistener "tcp" {{\n  address = "127.0.0.1:{port}"\n'
            f'  tls_disable = true\n}}\napi_addr = "{self.url}"\ndisable_mlock = true\n'
        )
        with (self.home / "bao.log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("bao")), "server", f"-config={config}"],
                stdout=log, stderr=log, cwd=self.home,
            )  # fmt: skip
        self.root = hvac.Client(self.url, timeout=10)
        self.root.session.trust_env = False
        deadline = time.monotonic() + 90
        while True:
            assert time.monotonic() < deadline, (self.home / "bao.log").read_text()
            try:
                made = self.root.sys.initialize(1, 1)
                break
            except (hvac.exceptions.VaultError, requests.RequestException):
                time.sleep(0.2)
        self.unseal_key = made["keys"][0]
        self.unseal()
        self.root.token = made["root_token"]
        while not self.root.is_authenticated():
            time.sleep(0.1)
        self.root.sys.enable_secrets_engine("kv", path="secret", options={"version": "2"})
        self.root.sys.create_or_update_policy("vyvo-server", SERVER)
        self.root.sys.create_or_update_policy("vyvo-node", NODE)
        self.root.sys.enable_auth_method("approle")
        self.root.auth.approle.create_or_update_approle(
            "vyvo", token_policies=["vyvo-server", "vyvo-node"], token_ttl="1h"
        )
        self.approle = {
            "role_id": self.root.auth.approle.read_role_id("vyvo")["data"]["role_id"],
            "secret_id": SecretStr(
                self.root.auth.approle.generate_secret_id("vyvo")["data"]["secret_id"]
            ),
        }

    def unseal(self) -> None:
        self.root.sys.submit_unseal_key(self.unseal_key)

    def write(self, name: str, **values: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.root.secrets.kv.v2.create_or_update_secret(f"vyvo/{name}", values)
            except hvac.exceptions.VaultError:  # the engine is upgrading itself
                assert time.monotonic() < deadline
                time.sleep(0.2)
            else:
                return

    def settings(self, **values: Any) -> VaultSettings:
        return VaultSettings(_env_file=None, address=self.url, **{**self.approle, **values})

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bao]:
    made = Bao(tmp_path_factory.mktemp("bao"))
    try:
        made.start()
        made.write("registries/reg.example.com:5000", username="puller", password="S3CRET")
        made.write("hugging-face", token="hf_S3CRET")
        made.write("github", token="ghp_S3CRET")
        made.write("hidden", token="x")
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.home, ignore_errors=True)


async def test_secrets_are_read_by_approle_and_by_a_token(bao: Bao) -> None:
    token = bao.root.auth.token.create(policies=["vyvo-server"], ttl="1h")["auth"]["client_token"]
    by_token = {"role_id": None, "secret_id": None, "token": SecretStr(token)}
    for settings in (bao.settings(), bao.settings(**by_token)):
        secrets = make_secrets(Settings(_env_file=None), settings)
        login = await secrets.registry_login("reg.example.com:5000")
        assert login == RegistryLogin("reg.example.com:5000", "puller", "S3CRET")
        assert await secrets.registry_login("../hugging-face") is None
        assert await secrets.registry_login("other.example.com") is None
        found = await secrets.hugging_face_token()
        assert found is not None
        assert found.get_secret_value() == "hf_S3CRET"
        assert "S3CRET" not in repr(login)


def test_builds_ask_for_their_tokens(
    bao: Bao, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = bao.settings()
    assert settings.secret_id is not None
    monkeypatch.setenv("VYVO_VAULT_ADDRESS", bao.url)
    monkeypatch.setenv("VYVO_VAULT_ROLE_ID", str(settings.role_id))
    monkeypatch.setenv("VYVO_VAULT_SECRET_ID", settings.secret_id.get_secret_value())
    building = BuildingResource(
        data_dir=str(tmp_path), registry="reg.example.com", base_image="base",
        github_repository="team/models",
    )  # fmt: skip
    token = building.hub().token
    assert token is not None
    assert token.get_secret_value() == "hf_S3CRET"
    target = building.github()
    assert target is not None
    assert target.token.get_secret_value() == "ghp_S3CRET"
    assert "S3CRET" not in repr(building) + repr(target)


async def test_a_secret_that_changes_is_read_anew_and_one_that_lacks_a_member_is_said_so(
    bao: Bao,
) -> None:
    clock = Clock()
    secrets = VaultSecrets(bao.settings(), clock)
    bao.write("registries/r", username="a", password="1")
    first = await secrets.registry_login("r")
    bao.write("registries/r", username="a", password="2")
    assert await secrets.registry_login("r") == first
    clock.now += 61
    assert await secrets.registry_login("r") == RegistryLogin("r", "a", "2")
    bao.write("registries/half", username="a")
    with pytest.raises(Unavailable, match="has no password"):
        await secrets.registry_login("half")


async def test_while_it_is_sealed_what_was_read_serves_for_a_while(bao: Bao) -> None:
    clock = Clock()
    secrets = VaultSecrets(bao.settings(), clock)
    login = await secrets.registry_login("reg.example.com:5000")
    bao.root.sys.seal()
    try:
        clock.now += 61
        assert await secrets.registry_login("reg.example.com:5000") == login
        with pytest.raises(Unavailable, match="sealed"):
            await secrets.hugging_face_token()
        clock.now += 900
        with pytest.raises(Unavailable, match="sealed"):
            await secrets.registry_login("reg.example.com:5000")
    finally:
        bao.unseal()
    deadline = time.monotonic() + 30
    while True:
        try:
            assert await secrets.registry_login("reg.example.com:5000") == login
            break
        except Unavailable:
            assert time.monotonic() < deadline


async def test_a_right_that_is_taken_away_is_not_outlived_by_the_cache(bao: Bao) -> None:
    clock = Clock()
    made = bao.root.auth.token.create(policies=["vyvo-server"], ttl="1h")["auth"]
    by_token = {"role_id": None, "secret_id": None, "token": SecretStr(made["client_token"])}
    secrets = VaultSecrets(bao.settings(**by_token), clock)
    assert await secrets.registry_login("reg.example.com:5000") is not None
    bao.root.auth.token.revoke_accessor(made["accessor"])
    clock.now += 61
    for _ in range(2):
        with pytest.raises(Unavailable, match="refuses") as raised:
            await secrets.registry_login("reg.example.com:5000")
        assert made["client_token"] not in str(raised.value)


async def test_an_approle_whose_token_ended_logs_in_again(bao: Bao) -> None:
    clock = Clock()
    secrets = VaultSecrets(bao.settings(), clock)
    assert await secrets.hugging_face_token() is not None
    bao.root.auth.token.revoke(secrets._client.token)
    clock.now += 61
    assert await secrets.hugging_face_token() is not None


async def test_a_server_that_is_away_is_said_so() -> None:
    settings = VaultSettings(
        _env_file=None, address="http://127.0.0.1:1", token=SecretStr("t"),
    )  # fmt: skip
    with pytest.raises(Unavailable, match="does not answer"):
        await VaultSecrets(settings).hugging_face_token()


def can_read(bao: Bao, token: str) -> bool:
    client = hvac.Client(bao.url, token=token, timeout=10)
    client.session.trust_env = False
    try:
        client.secrets.kv.v2.read_secret_version(
            "vyvo/registries/reg.example.com:5000", raise_on_deleted_version=True
        )
    except hvac.exceptions.Forbidden:
        return False
    return True


def unwrapped(bao: Bao, wrapping_token: str) -> str:
    client = hvac.Client(bao.url, token=wrapping_token, timeout=10)
    client.session.trust_env = False
    return str(client.sys.unwrap()["auth"]["client_token"])


async def test_a_nodes_token_works_ends_with_its_time_and_by_revocation(bao: Bao) -> None:
    secrets = VaultSecrets(bao.settings(node_seconds=30))
    made = await secrets.node_token("gpu-01")
    assert made.wrapping_token not in repr(made)
    token = unwrapped(bao, made.wrapping_token)
    # Wrapped, it is good once: who finds it unwrapped knows that somebody else has it.
    with pytest.raises(hvac.exceptions.VaultError):
        unwrapped(bao, made.wrapping_token)
    assert can_read(bao, token)
    await secrets.revoke_node_token(made.accessor)
    assert not can_read(bao, token)
    await secrets.revoke_node_token(made.accessor)

    short = VaultSecrets(bao.settings().model_copy(update={"node_seconds": 2}))
    token = unwrapped(bao, (await short.node_token("gpu-02")).wrapping_token)
    assert can_read(bao, token)
    deadline = time.monotonic() + 30
    while can_read(bao, token):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize(
    "values", [{}, {"role_id": "r"}, {"token": "t", "role_id": "r", "secret_id": "s"}]
)
def test_settings_that_name_no_way_in_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="VYVO_VAULT_TOKEN"):
        VaultSecrets(VaultSettings(_env_file=None, address="http://127.0.0.1:1", **values))  # pyright: ignore[reportArgumentType]


def test_without_an_address_the_environment_holds_them() -> None:
    made = make_secrets(Settings(_env_file=None), VaultSettings(_env_file=None))
    assert isinstance(made, EnvironmentSecrets)
