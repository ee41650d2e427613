"""The github_actions backend: the image is built by a workflow run, from a context made here.

What goes in is the same as with buildx: the lock, the wheels and the files are laid out on this host
and handed over as one tar by a signed URL, so the run needs nothing of an index and its build has no
network either. This host's engine looks at the base image before and runs the image after.
"""

import re
import tarfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from vyvo_dagster.building.bake import build_arguments
from vyvo_dagster.building.caches import sha256_of
from vyvo_dagster.building.disk import full_disk_told
from vyvo_dagster.building.github_api import GitHubClient, GitHubTarget, Job, Run
from vyvo_dagster.building.image_check import image_tag, verified_result
from vyvo_dagster.building.image_context import complete_context
from vyvo_dagster.building.types import (
    BuildCanceled,
    BuildContext,
    BuildRequest,
    BuildResult,
    Phases,
)
from vyvo_dagster.domain.build import BuildBackend, BuildState
from vyvo_dagster.errors import BuildFailed, Unavailable

__all__ = ["GitHubActionsBackend", "run_title"]

_STEP: Final = "github"
_DIGEST: Final = re.compile(r"vyvo-digest (sha256:[0-9a-f]{64})")
_ARGUMENTS: Final = "buildx.arguments"
_ENDED: Final = "completed"
_POLL_SECONDS: Final = 0.25
_LOST_LOOKS: Final = 10
_CANCEL_LOOKS: Final = 3
# A run of an earlier try of the same build is followed instead of starting another.
_EARLIER: Final = timedelta(days=1)


def run_title(build_id: str) -> str:
    """The `run-name` of the shipped workflow: derived, so that a second try finds the first's run."""
    return f"vyvo build {build_id}"


class GitHubActionsBackend:
    """Builds by a workflow.

    Args:
        target: the repository, its workflow, and as whom.
        registry: `host:port` that images are pushed to, under the same name here and there.
        docker_host: engine of this host; None for Docker's default.
    """

    kind = BuildBackend.GITHUB_ACTIONS

    def __init__(self, target: GitHubTarget, registry: str, docker_host: str | None = None) -> None:
        self._target, self._registry, self._docker_host = target, registry, docker_host

    def build(self, request: BuildRequest, context: BuildContext) -> BuildResult:
        """Lock, hand over, dispatch, follow, check; see BuildResult.

        Raises:
            BuildFailed: a step failed. BuildCanceled: someone asked for it; the run is canceled.
            RunnerFailed: the image is pushed and its runner does not work.
            Unavailable: GitHub, engine or registry do not answer.
        """
        phases = Phases()
        env = {"DOCKER_HOST": self._docker_host} if self._docker_host else {}
        ready = complete_context(request, context, phases, self._docker_host, env)
        tag = image_tag(self._registry, request)
        with phases("hand_over"):
            arguments = build_arguments(
                request, context, tag=tag, base_digest=ready.base_digest, env=env
            )
            archive = context.scratch(request.build_id) / "context.tar"
            with full_disk_told(_STEP, archive.parent):
                _pack(request.recipe.folder, arguments, archive)
        try:
            with phases("build"), _shared(archive, context) as url:
                inputs = {
                    "build_id": request.build_id, "context_url": url,
                    "context_sha256": sha256_of(archive), "tag": tag,
                }  # fmt: skip
                digest = self._run(request, context, inputs)
        finally:
            archive.unlink(missing_ok=True)
        return verified_result(
            self.kind, request, context, ready, phases,
            registry=self._registry, digest=digest, docker_host=self._docker_host,
        )  # fmt: skip

    def _run(self, request: BuildRequest, context: BuildContext, inputs: dict[str, str]) -> str:
        client = GitHubClient(
            self._target,
            lambda seconds: _sleep(seconds, context),
            lambda text: context.log.line(_STEP, text),
        )
        try:
            run = self._start(client, request, context, inputs)
            run = self._follow(client, run, context)
            return self._end(client, run, context)
        except BuildCanceled:
            self._cancel(request.build_id)
            raise
        finally:
            client.close()

    def _start(
        self, client: GitHubClient, request: BuildRequest, context: BuildContext, inputs: dict[str, str]
    ) -> Run:  # fmt: skip
        title, since = run_title(request.build_id), datetime.now(UTC) - _EARLIER
        run = client.find(title, since)
        if run is not None and run.conclusion in {None, "success"}:
            context.log.line(_STEP, f"an earlier try has started {run.url}")
            return run
        earlier = run.id if run else None
        try:
            client.dispatch(inputs)
        except Unavailable as error:
            context.log.line(_STEP, f"{error.detail}; looking whether the run was made")
        deadline = time.monotonic() + self._target.start_seconds
        while time.monotonic() < deadline:
            run = client.find(title, since)
            if run is not None and run.id != earlier:
                context.log.line(_STEP, f"started {run.url}")
                return run
            _sleep(min(self._target.poll_seconds, 2.0), context)
        raise BuildFailed(
            f"github: no run named {title!r} was seen within {self._target.start_seconds:g} s; its "
            "workflow must have the run-name of the shipped one"
        )

    def _follow(self, client: GitHubClient, run: Run, context: BuildContext) -> Run:
        said: set[tuple[str, str, str]] = set()
        lost, deadline = 0, time.monotonic() + context.timeout
        while True:
            try:
                run = client.run(run.id)
                jobs = client.jobs(run.id)
                lost = 0
            except Unavailable:
                # The run goes on without us; only what is seen of it is late.
                lost += 1
                if lost == _LOST_LOOKS:
                    raise
                jobs = []
            for job in jobs:
                for name, status, conclusion in job.steps:
                    shown = (job.name, name, conclusion or status)
                    if shown not in said and status not in {"queued", "pending"}:
                        said.add(shown)
                        context.log.line(_STEP, f"{name}: {conclusion or status}")
            if run.status == _ENDED:
                return run
            if time.monotonic() > deadline:
                client.cancel(run.id)
                raise BuildFailed(f"github: gave up after {context.timeout:g} s; {run.url}")
            _sleep(self._target.poll_seconds, context)

    def _cancel(self, build_id: str) -> None:
        """Cancel the build's run, by a client that does not stop for the cancel itself."""
        since = datetime.now(UTC) - _EARLIER
        free = GitHubClient(
            self._target, lambda seconds: time.sleep(min(seconds, 1.0)), lambda _: None
        )
        try:
            # It may not be seen yet. One that never is ends by its own time limit.
            for _ in range(_CANCEL_LOOKS):
                run = free.find(run_title(build_id), since)
                if run is not None:
                    if run.conclusion is None:
                        free.cancel(run.id)
                    return
                time.sleep(1.0)
        except (Unavailable, BuildFailed):
            return
        finally:
            free.close()

    def _end(self, client: GitHubClient, run: Run, context: BuildContext) -> str:
        digest, last = "", ""
        failed = ""
        for job in client.jobs(run.id):
            failed = failed or _failed_step(job)
            with client.log(job) as lines:
                for line in lines:
                    if line.strip():
                        context.log.line("image", line)
                    if "error" in line.lower():
                        last = line.strip()
                    if found := _DIGEST.fullmatch(line.strip()):
                        digest = found[1]
        if run.conclusion != "success":
            where = f"step {failed!r}" if failed else "the run"
            raise BuildFailed(
                f"image: {where} ended as {run.conclusion}: {last[:400] or 'see its log'} ({run.url})"
            )
        if not digest:
            raise BuildFailed(f"push: the run told no digest ({run.url})")
        context.on_state(BuildState.PUSHING)
        return digest


def _failed_step(job: Job) -> str:
    bad = (name for name, _, conclusion in job.steps if conclusion in {"failure", "timed_out"})
    return next(bad, "")


def _pack(folder: Path, arguments: list[str], archive: Path) -> None:
    """The context and the arguments as one tar; of no one's owner and time, links as links."""
    if any("\n" in argument for argument in arguments):
        raise BuildFailed("image: an argument of the bake file holds a line break")
    listed = archive.with_name(_ARGUMENTS)
    listed.write_text("".join(f"{argument}\n" for argument in arguments))

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = 0
        return member

    try:
        with tarfile.open(archive, "w") as tar:
            tar.add(listed, _ARGUMENTS, filter=anonymous)
            tar.add(folder, "context", filter=anonymous)
    finally:
        listed.unlink()


@contextmanager
def _shared(archive: Path, context: BuildContext) -> Generator[str]:
    if context.share is None:
        raise BuildFailed("github: the build context can be handed over by the object store only")
    context.log.line(_STEP, f"handing over {archive.stat().st_size / 1e6:.1f} MB")
    with context.share(archive) as url:
        yield url


def _sleep(seconds: float, context: BuildContext) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        context.check_canceled()
        time.sleep(min(left, _POLL_SECONDS))
    context.check_canceled()
