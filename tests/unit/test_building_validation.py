"""What a caller may send with a build."""

import pytest

from vyvo_dagster.building.validation import (
    validate_base_image,
    validate_env,
    validate_repo,
    validate_weights_uri,
)
from vyvo_dagster.domain.address import is_public_address
from vyvo_dagster.errors import InvalidEnv, InvalidInput, InvalidWeightsUri


@pytest.mark.parametrize(
    "uri",
    [
        "s3://vyvo-model/weights/sha256/00ff",
        "https://huggingface.co/x/y/resolve/main/model.safetensors?download=true",
        "https://example.com:8443/a/b.tar",
        "https://93.184.216.34/w.bin",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/w.bin",
        "hf://chetwinlow1/Ovi/model.safetensors",
        "hf://chetwinlow1/Ovi@v1.0/folder/model.safetensors",
        "hf://chetwinlow1/Ovi",
        "hf://chetwinlow1/Ovi@v1.0",
    ],
)
def test_weights_of_the_store_public_hosts_and_the_hub_are_allowed(uri: str) -> None:
    assert validate_weights_uri(uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "weights.bin",
        "/etc/passwd",
        "../weights.bin",
        "file:///etc/passwd",
        "http://example.com/w.bin",
        "ftp://example.com/w.bin",
        "HTTPS://example.com/w.bin",
        "gopher://example.com/x",
        "s3:/bucket/key",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://Bucket_With_Bad_Name/key",
        "s3://user:pass@bucket/key",
        "https://example.com",
        "https://example.com/",
        "https:///w.bin",
        "https://user@example.com/w.bin",
        "https://user:secret@example.com/w.bin",
        "https://example.com/a/../b",
        "https://example.com/a/%2e%2e/b",
        "https://example.com/w.bin#frag",
        "https://example.com\\@127.0.0.1/w.bin",
        "https://exa mple.com/w.bin",
        "https://example.com/w\n.bin",
        "https://example.com/w\x00.bin",
        "https://example.com:99999/w.bin",
        "https://example.com:port/w.bin",
        "https://localhost/w.bin",
        "https://LOCALHOST./w.bin",
        "https://a.localhost/w.bin",
        "https://db.internal/w.bin",
        "https://printer.local/w.bin",
        "https://intranet/w.bin",
        "https://127.0.0.1/w.bin",
        "https://127.1/w.bin",
        "https://2130706433/w.bin",
        "https://0x7f.0.0.1/w.bin",
        "https://0x7f000001/w.bin",
        "https://0177.0.0.1/w.bin",
        "https://0.0.0.0/w.bin",
        "https://10.0.0.5/w.bin",
        "https://172.16.1.1/w.bin",
        "https://192.168.1.1/w.bin",
        "https://100.64.0.1/w.bin",
        "https://169.254.169.254/latest/meta-data",
        "https://224.0.0.1/w.bin",
        "https://255.255.255.255/w.bin",
        "https://[::1]/w.bin",
        "https://[::]/w.bin",
        "https://[fe80::1]/w.bin",
        "https://[fe80::1%25eth0]/w.bin",
        "https://[fd00::1]/w.bin",
        "https://[::ffff:127.0.0.1]/w.bin",
        "https://[::ffff:a9fe:a9fe]/w.bin",
        "https://[64:ff9b::7f00:1]/w.bin",
        "https://[2002:7f00:1::]/w.bin",
        "https://[::1/w.bin",
        "https://\uff11\uff12\uff17.0.0.1/w.bin",
        "https://localhost\u3002/w.bin",
        "hf://owner",
        "hf://owner/name/",
        "hf://owner/name@",
        "hf://owner/name/../x",
        "hf://owner/name@/x",
        "hf://owner/name@../x",
        "hf://../name/x",
        "hf://owner/name/x?y=1",
        "https://example.com/" + "a" * 2048,
        "s3://bucket/" + "a" * 1025,
    ],
)
def test_other_locations_of_weights_are_refused(uri: str) -> None:
    with pytest.raises(InvalidWeightsUri) as caught:
        validate_weights_uri(uri)
    assert caught.value.status == 422
    assert "\n" not in caught.value.detail
    assert len(caught.value.detail) < 300


def test_a_refusal_does_not_repeat_a_password() -> None:
    with pytest.raises(InvalidWeightsUri) as caught:
        validate_weights_uri("https://user:hunter22@example.com/w.bin")
    assert "hunter22" not in caught.value.detail


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888"])
def test_public_addresses(address: str) -> None:
    assert is_public_address(address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "169.254.1.1", "10.1.1.1", "::1", "fe80::1%eth0", "64:ff9b::a00:1", "", "x"],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public_address(address)


def test_env_is_returned_as_a_copy() -> None:
    env = {"HF_TOKEN": "secret", "_x": "ä ü \t tab", "EMPTY": ""}
    checked = validate_env(env)
    assert checked == env
    assert checked is not env


@pytest.mark.parametrize(
    "env",
    [
        {"": "x"},
        {"1A": "x"},
        {"A-B": "x"},
        {"A B": "x"},
        {"A=B": "x"},
        {"A\n": "x"},
        {"Ä": "x"},
        {"A" * 129: "x"},
        {"A": "x\ny"},
        {"A": "x\ry"},
        {"A": "x\x00y"},
        {"A": "\x1b[31m"},
        {"A": "x\u2028y"},
        {"A": "x\x85y"},
        {"A": "\ud800"},
        {"A": "x" * 4097},
        {"LD_PRELOAD": "/x.so"},
        {"ld_preload": "/x.so"},
        {"PYTHONPATH": "/x"},
        {"OPENSSL_CONF": "/x"},
        {"PATH": "/x"},
        {"Path": "/x"},
        {"VYVO_S3_SECRET_KEY": "x"},
        {"COG_PREDICT_TYPE_STUB": "x"},
        {"HOME": "/x"},
        {f"A{i}": "" for i in range(65)},
        {f"A{i}": "x" * 4096 for i in range(9)},
    ],
)
def test_env_that_cannot_be_carried_safely_is_refused(env: dict[str, str]) -> None:
    with pytest.raises(InvalidEnv):
        validate_env(env)


def test_env_errors_never_quote_values() -> None:
    with pytest.raises(InvalidEnv) as caught:
        validate_env({"TOKEN": "hunter22\n"})
    assert "hunter22" not in caught.value.detail
    assert "TOKEN" in caught.value.detail


HOSTS = ["github.com", "git.inside:8443"]


def test_repo_is_https_at_an_allowed_host_without_credentials() -> None:
    for good in (
        "https://github.com/x/y.git",
        "https://git.inside:8443/x",
        "https://GitHub.com:443/x/y",
    ):
        assert validate_repo(good, HOSTS) == good
    for bad in [
        "git@github.com:x/y",
        "http://github.com/x/y",
        "https://token@github.com/x/y",
        "https://github.com@evil.example/x/y",
        "https://github.com.evil.example/x/y",
        "https://github.com:8443/x/y",
        "https://git.inside/x",
        "https://localhost/x",
        "--upload-pack=touch",
        "https://github.com/x y",
        "https://github.com/x/../y",
        "https://github.com/x/y?z=1",
        "https://github.com/x/y#z",
        "https://github.com",
        "https://[::1/x",
        "ext::sh -c id",
    ]:
        with pytest.raises(InvalidInput):
            validate_repo(bad, HOSTS)
        with pytest.raises(InvalidInput):
            validate_repo("https://10.0.0.7/x/y", ["*"])
    assert validate_repo("https://any.example/x/y", ["*"]) == "https://any.example/x/y"


@pytest.mark.parametrize(
    "good",
    [
        "vyvo/base:bookworm",
        "python:3.11-slim",
        "127.0.0.1:5000/vyvo/base@sha256:" + "0" * 64,
        "registry.example.com/a/b/c:1.0",
        "[::1]:5000/x:1",
    ],
)
def test_base_image_references(good: str) -> None:
    assert validate_base_image(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "-v",
        "--privileged",
        "a b",
        "a;b",
        "$(id)",
        "a:b:c",
        "../x",
        "x@sha256:12",
        "x" * 256,
        "A/B\n",
    ],
)
def test_base_image_that_is_no_reference(bad: str) -> None:
    with pytest.raises(InvalidInput):
        validate_base_image(bad)
