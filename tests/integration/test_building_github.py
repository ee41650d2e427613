"""The github_actions backend: the API client against GitHub's documented answers, and a run by act."""

import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr

from runner_images import SDK_DIR, SHARED_DIR, get_template
from tests.integration.github_stand_in import REPOSITORY, TOKEN, GitHub, github_stand_in
from vyvo_dagster.building.backends import choose, why_not_buildx
from vyvo_dagster.building.github_actions import GitHubActionsBackend
from vyvo_dagster.building.github_api import GitHubClient, GitHubTarget
from vyvo_dagster.building.recipe import TemplateFiles, lay_out
from vyvo_dagster.building.sharing import shared_file
from vyvo_dagster.building.types import BuildCanceled, BuildContext, BuildRequest, BuildResult
from vyvo_dagster.domain.build import BuildBackend
from vyvo_dagster.errors import BuildFailed, Unavailable
from vyvo_dagster.objects import ObjectStore
from vyvo_dagster.settings import S3Settings

REGISTRY = "127.0.0.1:5000"
HAS_ENGINE = why_not_buildx(REGISTRY) is None


class Bench:
    """A build host that hands its builds to the stand-in."""

    def __init__(self, github: GitHub, data_dir: Path, store: ObjectStore) -> None:
        self.github, self.data_dir, self.store = github, data_dir, store
        self.lines: list[str] = []
        self.cancel = threading.Event()
        self.target = GitHubTarget(
            REPOSITORY, SecretStr(TOKEN), api=github.url, poll_seconds=0.2, start_seconds=5.0
        )
        self.waited: list[float] = []

    def line(self, step: str, text: str, fields: object = None) -> None:
        self.lines.append(f"{step}: {text}")

    def client(self) -> GitHubClient:
        return GitHubClient(self.target, self.waited.append, lambda text: self.line("github", text))

    def build(self, template: Path, build_id: str | None = None) -> BuildResult:
        build_id = build_id or str(uuid.uuid4())
        context = BuildContext(
            data_dir=self.data_dir, log=self, cancel=self.cancel, timeout=240.0, ready_timeout=60.0,
            share=partial(shared_file, self.store, build_id),
        )  # fmt: skip
        recipe = lay_out(
            context.scratch(build_id) / "context", TemplateFiles(template, SHARED_DIR), None, self
        )
        request = BuildRequest(
            build_id=build_id, recipe=recipe, template_name=template.name, template_hash="sha256:0",
            model_id=f"test/g-{build_id[-12:]}", version="v1+x", base_image="vyvo/base:bookworm",
            sdk_dir=SDK_DIR, labels={"note": "$(id) `id` \"q\" 'p'"},
        )  # fmt: skip
        return GitHubActionsBackend(self.target, REGISTRY).build(request, context)


@pytest.fixture
def bench(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, s3_settings: S3Settings
) -> Iterator[Bench]:
    with github_stand_in(tmp_path) as github:
        yield Bench(github, tmp_path_factory.mktemp("build-host"), ObjectStore(s3_settings))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(get_template("digits-diffusion").path, tmp_path / "digits-diffusion")
    )


@pytest.mark.parametrize(
    ("answer", "waits"),
    [
        ((429, {"Retry-After": "7"}, "slow down"), 7.0),
        ((403, {"Retry-After": "3"}, "You have exceeded a secondary rate limit"), 3.0),
        ((403, {}, "You have exceeded a secondary rate limit"), 60.0),
        ((429, {}, "x"), 60.0),
        ((500, {}, "x"), 1.0),
        ((503, {}, "x"), 1.0),
    ],
)
def test_limits_and_server_errors_are_waited_out(
    bench: Bench, answer: tuple[int, dict[str, str], str], waits: float
) -> None:
    bench.github.execute = False
    bench.github.start({"build_id": "b"})
    bench.github.wrong = [answer]
    run = bench.client().run(bench.github.runs[0].id)
    assert (run.title, run.status, run.conclusion) == ("vyvo build b", "queued", None)
    assert bench.waited == [waits]


def test_a_primary_limit_is_waited_for_until_its_reset(bench: Bench) -> None:
    bench.github.execute = False
    bench.github.start({"build_id": "b"})
    run_id = bench.github.runs[0].id
    spent = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(time.time()) + 100)}
    bench.github.wrong = [(403, spent, "API rate limit exceeded")]
    bench.client().run(run_id)
    assert 90 < bench.waited[0] <= 100
    assert "GitHub limits the rate" in bench.lines[0]
    late = {**spent, "x-ratelimit-reset": str(int(time.time()) + 7200)}
    bench.github.wrong = [(429, late, "API rate limit exceeded")]
    with pytest.raises(Unavailable, match="the rate limit ends in 7"):
        bench.client().run(run_id)


def test_a_limited_dispatch_is_sent_again_and_a_failed_one_is_not(bench: Bench) -> None:
    bench.github.execute = False
    bench.github.wrong = [(429, {"Retry-After": "1"}, "x")]
    bench.client().dispatch({"build_id": "b"})
    assert len(bench.github.runs) == 1
    bench.github.wrong = [(502, {}, "x")]
    with pytest.raises(Unavailable, match="does not answer"):
        bench.client().dispatch({"build_id": "c"})
    assert len(bench.github.runs) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token": SecretStr("wrong")}, "the token is not taken .*: Bad credentials"),
        ({"workflow": "../other.yml"}, "has no workflow"),
        ({"ref": "gone"}, "cannot be dispatched: No ref found for: gone"),
        ({"repository": "team/none"}, "team/none has no workflow"),
    ],
)
def test_what_is_set_wrong_is_said(bench: Bench, change: dict[str, object], said: str) -> None:
    bench.github.execute = False
    bench.target = replace(bench.target, **change)  # type: ignore[arg-type]
    client = bench.client()
    ask = (
        partial(client.find, "x", datetime.now(UTC))
        if "workflow" in change
        else partial(client.dispatch, {"build_id": "b"})
    )
    with pytest.raises(BuildFailed, match=f"^github: .*{said}"):
        ask()
    assert "wrong" not in "".join(bench.lines)


def test_a_long_log_is_read_in_bounded_lines(bench: Bench) -> None:
    bench.github.execute = False
    bench.github.start({"build_id": "b"})
    run = bench.github.runs[0]
    run.lines = ["\ufefffirst", "x" * 1_000_000, "last"]
    run.status = "completed"
    client = bench.client()
    with client.log(client.jobs(run.id)[0]) as lines:
        found = list(lines)
    assert found[-1] == "last"
    assert max(map(len, found)) <= 16 << 10


def test_a_build_without_a_repository_of_workflows_says_what_to_set() -> None:
    with pytest.raises(Unavailable, match="VYVO_GITHUB_REPOSITORY"):
        choose(BuildBackend.GITHUB_ACTIONS, registry=REGISTRY)


class TestRuns:
    """Runs of the shipped workflow on this host, where it has an engine."""

    __test__ = HAS_ENGINE

    def test_the_shipped_workflow_builds_an_image(self, bench: Bench, template: Path) -> None:
        bench.github.lose_dispatch = True
        cold = bench.build(template)
        log = "\n".join(bench.lines)
        assert len(bench.github.runs) == 1, "a dispatch whose answer was lost was sent again"
        assert cold.backend is BuildBackend.GITHUB_ACTIONS
        assert cold.image.startswith(f"{REGISTRY}/vyvo/test/g-")
        assert cold.image.endswith(cold.digest)
        assert "digit" in cold.input_schema["properties"]
        assert "github: Build and push: success" in log
        assert "image: " in log
        warm = bench.build(template)
        print(
            f"\ndigits-diffusion x github_actions (act): cold {cold.durations}, warm {warm.durations}"
        )
        assert warm.lock_sha256 == cold.lock_sha256
        # The context is handed over for the run's time only.
        assert not list(bench.store.list(bench.store.bucket("log"), "handed-over/"))  # type: ignore[arg-type]
        assert not list(bench.data_dir.glob("builds/*/context.tar"))

    def test_a_second_try_follows_the_run_of_the_first(self, bench: Bench, template: Path) -> None:
        build_id = str(uuid.uuid4())
        first = bench.build(template, build_id)
        again = bench.build(template, build_id)
        assert len(bench.github.runs) == 1
        assert again.digest == first.digest

    def test_a_failing_step_is_named(self, bench: Bench, template: Path) -> None:
        (template / "predict.py").write_text("import nothing_of_that_name\n")
        with pytest.raises(BuildFailed, match=r"^image: step .* ended as failure"):
            bench.build(template)
        assert any("nothing_of_that_name" in line for line in bench.lines)

    def test_a_cancel_ends_the_run(self, bench: Bench, template: Path) -> None:
        bench.github.execute = False

        def cancel() -> None:
            while not bench.github.runs:
                time.sleep(0.05)
            bench.cancel.set()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(BuildCanceled):
            bench.build(template)
        thread.join()
        assert bench.github.runs[0].conclusion == "cancelled"
