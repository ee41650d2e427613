"""Lines of logs: ids, forms, and that no secret is in them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from vyvo_dagster.settings import AgentSettings, S3Settings, Settings
from vyvo_dagster.telemetry import logs

KEY = "vyk_0a1b2c3d_" + "k" * 43


@pytest.fixture(autouse=True)
def _nothing_hidden() -> Iterator[None]:
    before, always = list(logs._hidden), dict(logs._always)
    # An agent that ran in this process has said whose its lines are.
    logs._always.clear()
    yield
    logs._hidden[:] = before
    logs._always.clear()
    logs._always.update(always)


def written(form: str, log_something: object, *, one_line: bool = False) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.formatter(form, one_line=one_line))  # type: ignore[arg-type]
    logger = logging.getLogger("vyvo.test")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]
    log_something(logger)  # type: ignore[operator]
    return stream.getvalue()


def test_a_json_line_has_the_ids_that_are_bound_and_given() -> None:
    def said(log: logging.Logger) -> None:
        with logs.bound(job_id="j-1", attempt=2):
            log.warning("node %s is away", "gpu-1", extra={"node_id": "n-1"})

    line = json.loads(written("json", said))
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "node gpu-1 is away", "level": "warning", "logger": "vyvo.test", "job_id": "j-1",
        "attempt": 2, "node_id": "n-1",
    }  # fmt: skip


def test_a_json_line_says_whose_it_is() -> None:
    logs.always(service="agent", node_id="n-1")
    line = json.loads(written("json", lambda log: log.info("hello", extra={"node_id": "n-2"})))
    assert (line["service"], line["node_id"], line["event"]) == ("agent", "n-2", "hello")
    assert "agent" not in written("text", lambda log: log.info("hello"))


def test_ids_end_with_their_block() -> None:
    def said(log: logging.Logger) -> None:
        with logs.bound(build_id="b-1"):
            pass
        log.info("after")

    assert "b-1" not in written("text", said)


def test_text_has_a_traces_lines_on_one_where_asked() -> None:
    def said(log: logging.Logger) -> None:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("it broke")

    assert len(written("text", said, one_line=True).splitlines()) == 1
    assert "Traceback" in written("text", said, one_line=True)
    assert json.loads(written("json", said))["exception"].endswith("ValueError: two\nlines")


SECRETS = {
    "a key": (f"refused {KEY}", "k" * 43),
    "a node's credential": (f"sent vyn_0a1b2c3d_{'n' * 43} on", "n" * 43),
    "a bearer": ("authorization: Bearer abcdef.ghijkl-mnop", "abcdef.ghijkl-mnop"),
    "a password in a URL": ("no answer of postgresql://vyvo:pa%2Fss-word@db:5432/x", "pa%2Fss-word"),
    "a redis password": ("redis://:hunter22@cache:6379/0 is away", "hunter22"),
    "a presigned URL": ("GET http://s3/b/k?X-Amz-Date=1&X-Amz-Signature=0123456789abcdef", "0123456789abcdef"),
    "a variable": ("env VYVO_S3_SECRET_KEY=s3cr3tvalue", "s3cr3tvalue"),
    "a member of JSON": ('{"password": "correct-horse", "x": 1}', "correct-horse"),
    "an escaped member": ('{"said": "{\\"token\\": \\"abcdef123456\\"}"}', "abcdef123456"),
    "a webhook's secret": ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
    "a hub's token": ("login hf_" + "a" * 34, "a" * 34),
    "a GitHub token": ("with ghp_" + "b" * 36, "b" * 36),
    "a Vault token": ("with hvs.CAESI" + "c" * 30, "c" * 30),
    "a JWT": ("jwt eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl", "c2lnbmF0dXJl"),
    "a private key": ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----", "MHcCAQ"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_what_looks_like_a_secret_is_in_no_line(text: str, secret: str, form: str) -> None:
    def said(log: logging.Logger) -> None:
        try:
            raise RuntimeError(text)
        except RuntimeError:
            log.exception("it broke: %s", text, extra={"detail": text})

    line = written(form, said)
    assert secret not in line
    assert "it broke" in line
    assert "***" in line
    if form == "json":
        json.loads(line)


@pytest.mark.parametrize("text", [
    "build 0190a5c8-7b3e-7000-8000-1c2d3e4f5a6b is run 5c1f",
    "the token is refused", "GET /api/keys answered 200 in 12 ms",
    "s3://vyvo-image/2026/11/24/a-1/0123456789abcdef.png", "sha256:" + "ab" * 32,
    "http://127.0.0.1:8080/api/jobs?cursor=abc", "node gpu-1 is lost: silent for 0:01:00",
])  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.redact(text) == text


def test_known_values_are_hidden_wherever_they_stand() -> None:
    settings = Settings(
        postgres_dsn="postgresql://vyvo:db-pass%21@h/x", join_token=SecretStr("plainjoin"),
        secret_registries={"reg": SecretStr("user:regpass")}, _env_file=None,
    )  # type: ignore[call-arg]  # fmt: skip
    agent = AgentSettings(join_token=SecretStr("agent-join"))
    s3 = S3Settings(secret_key=SecretStr("s3-very-secret"))
    found = logs.secrets_of(settings, agent, s3)
    assert {"db-pass%21", "db-pass!", "plainjoin", "user:regpass", "agent-join", "s3-very-secret"} <= {*found}  # fmt: skip
    logs.hide(*found)
    assert logs.redact("so plainjoin, and s3-very-secret.") == "so ***, and ***."


def test_short_values_hide_nothing() -> None:
    logs.hide("", "a", "vyvo")
    assert logs.redact("vyvo api") == "vyvo api"
