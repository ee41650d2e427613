"""How engines are reached: the real engine of this machine behind TLS and behind ssh."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.dagster import gateways
from vyvo_dagster.errors import InvalidInput
from vyvo_dagster.execution.routing.engines import ENGINE_ERRORS, Engines
from vyvo_dagster.execution.routing.hosts import DockerHost, Occupancy

# One after the other: they share the engines, or keep both cores busy.
pytestmark = pytest.mark.xdist_group("hosts")


@pytest.fixture
def engines() -> Iterator[Engines]:
    opened = Engines(timeout=5)
    yield opened
    opened.close()


@pytest.fixture
def this_engine(engines: Engines) -> str:
    return engines.client(DockerHost("here", f"unix://{gateways.SOCKET}")).info()["ID"]


def test_by_tcp_with_tls_on_both_sides(engines: Engines, this_engine: str, tmp_path: Path) -> None:
    authority, other = gateways.Authority(), gateways.Authority()
    server = authority.issue(tmp_path / "server", "engine")
    ours = authority.issue(tmp_path / "client", "worker")
    strangers = other.issue(tmp_path / "stranger", "worker")
    (tmp_path / "mixed").mkdir()
    for name, folder in (("cert.pem", strangers), ("key.pem", strangers), ("ca.pem", ours)):
        (tmp_path / "mixed" / name).write_bytes((folder / name).read_bytes())
    with gateways.tls(server) as port:
        url = f"tcp://127.0.0.1:{port}"
        host = DockerHost("tls", url, ours)
        assert engines.client(host).info()["ID"] == this_engine
        assert isinstance(engines.occupancy([host])["tls"], Occupancy)
        # Who trusts another authority, who has no certificate of this one, who has none at all.
        for wrong in (strangers, tmp_path / "mixed", None):
            with pytest.raises(ENGINE_ERRORS):
                engines.client(DockerHost("wrong", url, wrong)).info()


def test_by_ssh_with_known_keys(
    engines: Engines, this_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    ours = gateways.ssh_key(tmp_path / ".ssh" / "id_ed25519")
    host_key = gateways.ssh_key(tmp_path / "host_key")
    known = tmp_path / ".ssh" / "known_hosts"
    known.touch()
    with gateways.ssh(host_key, ours) as port:
        host = DockerHost("ssh", f"ssh://vyvo@127.0.0.1:{port}")
        with pytest.raises(ENGINE_ERRORS, match="not found in known_hosts"):
            engines.client(host)
        known.write_text(f"[127.0.0.1]:{port} {host_key.get_name()} {host_key.get_base64()}\n")
        assert engines.client(host).info()["ID"] == this_engine
        assert isinstance(engines.occupancy([host])["ssh"], Occupancy)
        stranger = DockerHost("ssh", f"ssh://root@127.0.0.1:{port}")
        with pytest.raises(ENGINE_ERRORS):
            engines.client(stranger)


def test_an_engine_that_does_not_answer_holds_up_none_that_do() -> None:
    engines = Engines(timeout=1)
    with gateways.listening() as (_, port):  # Accepts, and says nothing.
        silent = DockerHost("silent", f"tcp://127.0.0.1:{port}")
        gone = DockerHost("gone", "unix:///nonexistent/docker.sock")
        here = DockerHost("here", f"unix://{gateways.SOCKET}")
        before = time.monotonic()
        found = engines.occupancy([silent, gone, here])
        assert time.monotonic() - before < 8
    assert found["silent"] is None
    assert found["gone"] is None
    assert isinstance(found["here"], Occupancy)
    engines.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("tcp://gpu-01:2375", "needs TLS with a client certificate"),
        ("http://127.0.0.1:2375", "begins with none of"),
        ("npipe:////./pipe/docker", "begins with none of"),
        ("", "begins with none of"),
    ],
)
def test_an_engine_that_is_not_safe_to_ask_is_refused(
    engines: Engines, url: str, reason: str
) -> None:
    with pytest.raises(InvalidInput, match=reason):
        engines.client(DockerHost("gpu-01", url))
