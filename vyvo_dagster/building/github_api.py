"""GitHub's REST API, as far as a workflow run needs it (docs.github.com/en/rest, version 2022-11-28).

Limits are kept as GitHub asks: `retry-after`, or `x-ratelimit-reset` where nothing remains, else a
minute, doubled each time. Server errors and lost connections are tried again; reads always, a
dispatch never by itself, since the first may have been taken.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from vyvo_dagster.errors import BuildFailed, Unavailable

__all__ = ["GitHubClient", "GitHubTarget", "Job", "Run"]

_TRIES: Final = 5
_OK: Final = 200
_TOO_MANY: Final = 429
_LIMIT_CODES: Final = frozenset({403, _TOO_MANY})
_LONGEST_LIMIT: Final = 3600.0
_LONGEST_WAIT: Final = 60.0
_TIMEOUT: Final = httpx.Timeout(30.0, connect=10.0)
_PAGE: Final = 100
_LINE_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class GitHubTarget:
    """Where builds run.

    Args:
        repository: `owner/name` that has the workflow.
        token: with `actions: write` for it.
        workflow: file name in `.github/workflows`.
        ref: branch or tag whose workflow is run.
        api: URL; GitHub Enterprise Server's ends in /api/v3.
        poll_seconds: between two looks at a run.
        start_seconds: until a dispatched run must be seen.
    """

    repository: str
    token: SecretStr = field(repr=False)
    workflow: str = "vyvo-build.yml"
    ref: str = "main"
    api: str = "https://api.github.com"
    poll_seconds: float = 5.0
    start_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """A workflow run. `conclusion` is None until it has ended."""

    id: int
    title: str
    status: str
    conclusion: str | None
    url: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a run, and its steps as (name, status, conclusion)."""

    id: int
    name: str
    conclusion: str | None
    steps: tuple[tuple[str, str, str | None], ...]


class GitHubClient:
    """One repository's workflow runs.

    Args:
        target: where.
        sleep: waits for seconds; raises to stop, such as when the build is canceled.
        say: told why something is waited for.
    """

    def __init__(
        self, target: GitHubTarget, sleep: Callable[[float], None], say: Callable[[str], None]
    ) -> None:
        self._target, self._sleep, self._say = target, sleep, say
        self._http = httpx.Client(
            base_url=f"{target.api.rstrip('/')}/repos/{target.repository}/actions/",
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {target.token.get_secret_value()}",
                "X-GitHub-Api-Version": "2022-11-28",
                "User-Agent": "vyvo-dagster",
            },
            timeout=_TIMEOUT,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def dispatch(self, inputs: Mapping[str, str]) -> None:
        """Ask for a run.

        Raises:
            BuildFailed: the workflow cannot be run so; the detail says what to mend.
            Unavailable: GitHub did not answer; the run may have been made all the same.
        """
        path = f"workflows/{quote(self._target.workflow, safe='')}/dispatches"
        body = {"ref": self._target.ref, "inputs": dict(inputs)}
        self._ask("POST", path, json=body, again=False)

    def find(self, title: str, since: datetime) -> Run | None:
        """The newest run of that title that was made after `since`."""
        path = f"workflows/{quote(self._target.workflow, safe='')}/runs"
        query = {
            "event": "workflow_dispatch", "per_page": str(_PAGE),
            "created": f">={since.strftime('%Y-%m-%dT%H:%M:%SZ')}",
        }  # fmt: skip
        found = self._json(self._ask("GET", path, params=query))
        runs = [_run(each) for each in cast("list[dict[str, Any]]", found["workflow_runs"])]
        return next((run for run in runs if run.title == title), None)

    def run(self, id: int) -> Run:
        """How a run stands."""
        return _run(self._json(self._ask("GET", f"runs/{id}")))

    def jobs(self, id: int) -> list[Job]:
        """The jobs of a run's last attempt."""
        found = self._json(self._ask("GET", f"runs/{id}/jobs", params={"per_page": str(_PAGE)}))
        return [_job(each) for each in cast("list[dict[str, Any]]", found["jobs"])]

    def cancel(self, id: int) -> None:
        """Ask for a run's end; one that has ended is no error."""
        try:
            self._ask("POST", f"runs/{id}/cancel", again=False)
        except BuildFailed:
            # 409: it has ended.
            return

    @contextmanager
    def log(self, job: Job) -> Generator[Iterator[str]]:
        """The lines of an ended job's log, without their times; long ones are cut."""
        answer = self._ask("GET", f"jobs/{job.id}/logs", follow=False)
        place = answer.headers.get("location", "")
        if not place:
            yield _lines(iter([answer.content]))
            return
        # The place is signed: the token is not for it.
        with httpx.stream("GET", place, timeout=_TIMEOUT, follow_redirects=True) as stream:
            if stream.status_code != _OK:
                raise Unavailable(f"github: the log answered {stream.status_code}")
            yield _lines(stream.iter_bytes())

    def _ask(
        self,
        method: str,
        path: str,
        *,
        again: bool = True,
        follow: bool = True,
        **arguments: Any,
    ) -> httpx.Response:
        said = ""
        for number in range(_TRIES):
            try:
                answer = self._http.request(method, path, follow_redirects=follow, **arguments)
            except httpx.HTTPError as error:
                said = type(error).__name__
                if not again:
                    break
                self._sleep(min(2.0**number, _LONGEST_WAIT))
                continue
            if (seconds := _limited(answer, number)) is not None:
                # Refused before it was looked at, so also a dispatch may be sent again.
                if seconds > _LONGEST_LIMIT:
                    raise Unavailable(f"github: the rate limit ends in {seconds:.0f} s only")
                self._say(f"GitHub limits the rate; going on in {seconds:.0f} s")
                said = f"{answer.status_code}, rate limit"
                self._sleep(seconds)
            elif answer.status_code >= 500:
                said = str(answer.status_code)
                if not again:
                    break
                self._sleep(min(2.0**number, _LONGEST_WAIT))
            elif answer.status_code >= 400:
                raise BuildFailed(f"github: {_meaning(answer, self._target)}")
            else:
                return answer
        raise Unavailable(f"github: {self._target.api} does not answer ({said})")

    @staticmethod
    def _json(answer: httpx.Response) -> dict[str, Any]:
        try:
            return cast("dict[str, Any]", answer.json())
        except ValueError as error:
            raise Unavailable("github: the answer is no JSON; is VYVO_GITHUB_API right?") from error


def _limited(answer: httpx.Response, number: int) -> float | None:
    """Seconds to wait, where the answer is that of a rate limit."""
    if answer.status_code not in _LIMIT_CODES:
        return None
    after = answer.headers.get("retry-after", "")
    if after.isdigit():
        return float(after)
    if answer.headers.get("x-ratelimit-remaining") == "0":
        reset = answer.headers.get("x-ratelimit-reset", "")
        return max(float(reset) - time.time(), 1.0) if reset.isdigit() else 60.0
    limited = answer.status_code == _TOO_MANY or "rate limit" in answer.text
    return 60.0 * 2**number if limited else None


def _meaning(answer: httpx.Response, target: GitHubTarget) -> str:
    try:
        said = str(answer.json().get("message", ""))[:200]
    except (ValueError, AttributeError):
        said = answer.text[:200]
    hint = {
        401: "the token is not taken (VYVO_GITHUB_TOKEN)",
        403: f"the token may not run workflows of {target.repository}; it needs actions: write",
        404: f"{target.repository} has no workflow {target.workflow}, or the token does not see it",
        422: f"{target.workflow} at {target.ref} cannot be dispatched",
    }.get(answer.status_code, f"it answered {answer.status_code}")
    return f"{hint}: {said}" if said else hint


def _run(found: Mapping[str, Any]) -> Run:
    return Run(
        int(found["id"]), str(found.get("display_title") or found.get("name") or ""),
        str(found["status"]), found.get("conclusion"), str(found.get("html_url") or ""),
    )  # fmt: skip


def _job(found: Mapping[str, Any]) -> Job:
    steps = cast("list[dict[str, Any]]", found.get("steps") or [])
    return Job(
        int(found["id"]), str(found.get("name") or ""), found.get("conclusion"),
        tuple((str(s["name"]), str(s["status"]), s.get("conclusion")) for s in steps),
    )  # fmt: skip


def _lines(chunks: Iterator[bytes]) -> Iterator[str]:
    """Lines of at most 16 KiB; the rest of a longer one is dropped, so that memory stays bounded."""
    rest, dropping = b"", False
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not dropping:
                yield _line(line)
            dropping = False
        if len(rest) > _LINE_BYTES:
            if not dropping:
                yield _line(rest)
            rest, dropping = b"", True
    if rest and not dropping:
        yield _line(rest)


def _line(raw: bytes) -> str:
    text = raw[:_LINE_BYTES].decode(errors="replace").lstrip("\ufeff").rstrip("\r")
    # Each line begins with a time, such as 2026-01-31T12:00:00.1234567Z.
    stamp, _, said = text.partition(" ")
    return said if stamp.endswith("Z") and stamp[4:5] == "-" and "T" in stamp else text
