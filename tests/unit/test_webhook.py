"""Where a webhook may go, when it is tried again, how it is signed."""

import base64

import pytest

from vyvo_dagster.domain.webhook import (
    TRIES,
    check_url,
    new_secret,
    pause_after,
    secret_bytes,
    sign,
)
from vyvo_dagster.errors import InvalidWebhook


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/x",
        "https://localhost/x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://0x7f000001/x",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://10.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "https://metadata.internal/x",
        "https://intranet/x",
        "https://user@hooks.example.com/x",
        "https://user:pw@hooks.example.com/x",
        "https://hooks.example.com/x#y",
        "https://hooks.example.com:0/x",
        "https://hooks.example.com:99999/x",
        "https://hooks.example.com\\@evil.example/x",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\u00e9",
        "https://[hooks/x",
        "https:///x",
        "ftp://hooks.example.com/x",
        "file:///etc/passwd",
        "",
    ],
)
def test_where_a_webhook_may_not_go(url: str) -> None:
    with pytest.raises(InvalidWebhook):
        check_url(url, allow_loopback=False)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com/x?y=1", "https://hooks.example.com:8443", "https://8.8.8.8/"]
)
def test_where_a_webhook_may_go(url: str) -> None:
    check_url(url, allow_loopback=False)


def test_this_machine_only_where_it_is_allowed() -> None:
    for url in ("http://127.0.0.1:9000/x", "http://localhost/x", "http://[::1]:1/x"):
        check_url(url, allow_loopback=True)
    for url in ("http://10.0.0.1/x", "http://hooks.example.com/x", "https://10.0.0.1/x"):
        with pytest.raises(InvalidWebhook):
            check_url(url, allow_loopback=True)


def test_five_tries_further_and_further_apart() -> None:
    *pauses, last = [pause_after(tries) or 0.0 for tries in range(1, TRIES + 1)]
    assert (len(pauses), last) == (4, 0.0)
    assert pauses == sorted(set(pauses))


def test_the_signature_is_the_one_of_the_standard() -> None:
    """The example of standard-webhooks' own libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    id_, body = "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}'
    made = sign([secret], id_, 1614265330, body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert len(sign([secret, new_secret()], id_, 1614265330, body).split(" ")) == 2


def test_secrets() -> None:
    made = new_secret()
    assert len(secret_bytes(made)) == 32
    assert made != new_secret()
    short = base64.b64encode(b"x" * 10).decode()
    for wrong in ("whsec_", "whsec_!!!", f"whsec_{short}", made.removeprefix("whsec_"), ""):
        with pytest.raises(InvalidWebhook):
            secret_bytes(wrong)
