"""A server that answers as GitHub's documented REST API does, and runs workflows by `act` on this host.

The answers' members are those of docs.github.com/en/rest/actions, version 2022-11-28; the run itself
is real: the shipped workflow file, its shell steps, docker.
"""

import http.server
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

REPOSITORY = "team/runners"
TOKEN = "github_pat_test"
WORKFLOW = Path(__file__).resolve().parents[2] / "deploy" / "github" / "vyvo-build.yml"
STEPS = ("Log in to the registry", "Fetch the build context", "Build and push", "Tell the digest")


@dataclass
class ActRun:
    """A workflow run, by act."""

    id: int
    title: str
    inputs: dict[str, str]
    status: str = "queued"
    conclusion: str | None = None
    lines: list[str] = field(default_factory=list[str])
    process: "subprocess.Popen[bytes] | None" = None


@dataclass
class GitHub:
    """What the stand-in was asked, what it runs, and what it is to answer wrong."""

    folder: Path
    url: str = ""
    runs: list[ActRun] = field(default_factory=list[ActRun])
    asked: list[str] = field(default_factory=list[str])
    wrong: list[tuple[int, dict[str, str], str]] = field(
        default_factory=list[tuple[int, dict[str, str], str]]
    )
    """Answers given before the right ones: status, headers, message."""
    lose_dispatch: bool = False
    """Take a dispatch and answer 502."""
    execute: bool = True
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(7_000_000_001))

    def start(self, inputs: dict[str, str]) -> None:
        run = ActRun(next(self.ids), f"vyvo build {inputs['build_id']}", inputs)
        self.runs.insert(0, run)
        if self.execute:
            threading.Thread(target=self._execute, args=(run,)).start()

    def _execute(self, run: ActRun) -> None:
        work = self.folder / f"run-{run.id}"
        (work / ".github" / "workflows").mkdir(parents=True)
        shutil.copy(WORKFLOW, work / ".github" / "workflows")
        event = work / "event.json"
        event.write_text(json.dumps({"inputs": run.inputs}))
        run.status = "in_progress"
        act = Path(sys.executable).with_name("act")
        run.process = subprocess.Popen(
            [str(act), "workflow_dispatch", "--eventpath", str(event), "--platform",
             "ubuntu-latest=-self-hosted", "--json", "--rm"],
            cwd=work, env={**os.environ, "HOME": str(work), "XDG_CACHE_HOME": str(work)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        assert run.process.stdout is not None
        with run.process.stdout:
            for raw in run.process.stdout:
                try:
                    said = json.loads(raw)
                except ValueError:
                    said = {"msg": raw.decode()}
                run.lines += str(said.get("msg", "")).rstrip("\n").split("\n")
        code = run.process.wait()
        run.status = "completed"
        run.conclusion = run.conclusion or ("success" if code == 0 else "failure")


class _Handler(http.server.BaseHTTPRequestHandler):
    github: GitHub

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path.startswith("/blob/"):
            assert "Authorization" not in self.headers, "the token went to where the log lies"
            run = self._run(path)
            stamped = "\n".join(f"2026-11-24T12:00:00.1234567Z {line}" for line in run.lines)
            self._answer(200, stamped.encode(), {"Content-Type": "text/plain"})
            return
        if self._refused():
            return
        if path == f"/repos/{REPOSITORY}/actions/workflows/vyvo-build.yml/runs":
            assert query["event"] == ["workflow_dispatch"]
            assert re.fullmatch(r">=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", query["created"][0])
            runs = [self._shown(run) for run in self.github.runs]
            self._json(200, {"total_count": len(runs), "workflow_runs": runs})
        elif path.endswith("/jobs"):
            run = self._run(path)
            steps = [
                {"name": name, "status": run.status, "conclusion": run.conclusion, "number": n}
                for n, name in enumerate(STEPS, 1)
            ]
            job = {"id": run.id, "name": "build", "status": run.status,
                   "conclusion": run.conclusion, "steps": steps}  # fmt: skip
            self._json(200, {"total_count": 1, "jobs": [job]})
        elif path.endswith("/logs"):
            place = f"{self.github.url}/blob/{self._run(path).id}"
            self._answer(302, b"", {"Location": place})
        elif "/actions/runs/" in path:
            self._json(200, self._shown(self._run(path)))
        else:
            self._json(404, {"message": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._refused():
            return
        if not self.path.startswith(f"/repos/{REPOSITORY}/"):
            self._json(404, {"message": "Not Found"})
        elif self.path.endswith("/dispatches"):
            asked = json.loads(body)
            if asked["ref"] != "main":
                self._json(422, {"message": f"No ref found for: {asked['ref']}"})
                return
            assert set(asked["inputs"]) <= set(
                re.findall(r"^ {6}(\w+):$", WORKFLOW.read_text(), re.MULTILINE)
            )
            self.github.start(asked["inputs"])
            if self.github.lose_dispatch:
                self._json(502, {"message": "Server Error"})
            else:
                self._answer(204, b"", {})
        elif self.path.endswith("/cancel"):
            run = self._run(self.path)
            run.status, run.conclusion = "completed", "cancelled"
            if run.process is not None:
                os.killpg(run.process.pid, 15)
            self._json(202, {})
        else:
            self._json(404, {"message": "Not Found"})

    def _refused(self) -> bool:
        self.github.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        assert self.headers["X-GitHub-Api-Version"] == "2022-11-28"
        assert self.headers["Accept"] == "application/vnd.github+json"
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._json(401, {"message": "Bad credentials"})
            return True
        if self.github.wrong:
            status, headers, message = self.github.wrong.pop(0)
            self._json(status, {"message": message}, headers)
            return True
        return False

    def _run(self, path: str) -> ActRun:
        found = re.search(r"(\d{6,})", path)
        assert found is not None
        return next(run for run in self.github.runs if run.id == int(found[1]))

    def _shown(self, run: ActRun) -> dict[str, Any]:
        return {
            "id": run.id, "name": "vyvo build", "display_title": run.title, "event": "workflow_dispatch",
            "status": run.status, "conclusion": run.conclusion,
            "html_url": f"https://github.test/{REPOSITORY}/actions/runs/{run.id}",
        }  # fmt: skip

    def _json(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(body).encode(), headers or {})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def github_stand_in(folder: Path) -> Iterator[GitHub]:
    """The stand-in, until the block ends; what it runs has ended then."""
    github = GitHub(folder)
    handler = type("Bound", (_Handler,), {"github": github})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    github.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield github
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        deadline = time.monotonic() + 60
        while any(run.process and run.process.poll() is None for run in github.runs):
            assert time.monotonic() < deadline
            time.sleep(0.1)
