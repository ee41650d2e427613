"""What a step of a workflow costs, beside stock Dagster and Prefect; and many runs at once.

    python benchmarks/workflows.py [--runs 1000] [--hold 60] [--without-rivals]

All in one run on one machine: a chain of 10 steps and a fan-out of 50, no-op each. Ours is the whole
stack as `vyvo up` starts it, each step a job on a `noop://` version by way of api, Postgres,
orchestrator and agent; what a step costs over its job is what the run takes beyond as many bare jobs,
sent to the same stack one by one, or all at once for the fan-out. Stock Dagster runs the same graphs by its multiprocess executor, from its own
start of the run to its end; Prefect by its own server and task runner. Both run steps that return at
once, so that all they take is overhead.

Then as many runs of three steps as asked for, each of which waits for `--hold` seconds in its first
step so that all are live at once: until all have ended, the engine's memory, how
far Dagster's event log lags behind, its rate, and how long its GraphQL takes to open runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

import httpx
import psycopg
from local_stack import stack

HERE: Final = Path(__file__).parent
RIVALS: Final = HERE / "rivals"
MODEL: Final = "bench/noop"
SLOTS: Final = 2048
CHAIN: Final = 10
FAN: Final = 50
REPEATS: Final = 5
STARTS: Final = 30
WAIT_SECONDS: Final = 600.0
START_GOAL: Final = 0.7
FACTOR_GOAL: Final = 10.0
OPEN_GOAL: Final = 2.0

OPEN_RUN: Final = """
query Open($id: ID!) {
  runOrError(runId: $id) { __typename ... on Run {
    status stepStats { stepKey status startTime endTime }
    executionPlan { steps { key } }
    eventConnection { events { __typename } }
  } }
}
"""


def chain() -> dict[str, Any]:
    """Steps one after the other."""
    steps = [
        {"name": f"s{n}", "model": MODEL, "input": {"n": n}, "needs": [f"s{n - 1}"] if n else []}
        for n in range(CHAIN)
    ]
    return {"name": "bench-chain", "steps": steps}


def fan() -> dict[str, Any]:
    """One step for each of many items."""
    each = {
        "name": "each",
        "model": MODEL,
        "for_each": list(range(FAN)),
        "input": {"n": "${{ item }}"},
    }
    return {"name": "bench-fan", "steps": [each]}


def three() -> dict[str, Any]:
    """Three steps one after the other, the first of which takes as long as asked for."""
    steps = [dict(step) for step in chain()["steps"][:3]]
    steps[0]["input"] = {"sleep_seconds": "${{ inputs.hold }}"}
    hold = {"type": "number", "default": 0}
    return {"name": "bench-three", "inputs": {"hold": hold}, "steps": steps}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--hold", type=float, default=60.0)
    parser.add_argument("--without-rivals", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vyvo-workflows-") as folder:
        home = Path(folder)
        with noop_stack(home / "data") as up:
            bench = Bench(up)
            rows = {"vyvo": bench.overheads()}
            starts = bench.starts()
            print(json.dumps({"vyvo": rows["vyvo"], "starts": starts}), flush=True)
            many = bench.many(given.runs, given.hold)
            print(json.dumps(many), flush=True)
        if not given.without_rivals:
            rows["Dagster, multiprocess"] = dagster_overheads(home)
            print(json.dumps({"dagster": rows["Dagster, multiprocess"]}), flush=True)
            rows["Prefect"] = prefect_overheads(home)
            print(json.dumps({"prefect": rows["Prefect"]}), flush=True)
    print_tables(rows, starts, many, given.runs)


def noop_stack(data_dir: Path) -> AbstractContextManager[dict[str, Any]]:
    """The whole stack with one agent that takes `noop://` versions."""
    env = {"VYVO_AGENT_ALLOW_NOOP": "1", "VYVO_AGENT_SLOTS": str(SLOTS)}
    return stack(data_dir, "--agents", "1", env=env)


class Bench:
    """The stack under measurement."""

    def __init__(self, up: Mapping[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {up['admin_key']}"}
        self.up = up
        self.http = httpx.Client(base_url=up["api"], headers=headers, timeout=60, trust_env=False)
        self.database = psycopg.connect(up["postgres_dsn"], autocommit=True)
        version = {"modality": "text", "runner_image": "noop://workflows"}
        self.http.put(f"/api/models/{MODEL}/versions/v1", json=version).raise_for_status()
        (node,) = self.http.get("/api/nodes").json()["items"]
        body = {"model_id": MODEL, "version_id": "v1"}
        self.http.post(f"/api/nodes/{node['id']}/assign", json=body).raise_for_status()
        wait_for(lambda: self._assigned(node["id"]))
        for document in (chain(), fan(), three()):
            self.http.post("/api/workflows", json=document).raise_for_status()

    def _assigned(self, node_id: str) -> bool:
        node = self.http.get(f"/api/nodes/{node_id}").json()
        return [a["state"] for a in node["assignments"]] == ["ready"]

    def run(self, name: str, **inputs: float) -> str:
        """Start a run; its id."""
        answer = self.http.post(f"/api/workflows/{name}/runs", json={"inputs": inputs})
        answer.raise_for_status()
        return str(answer.json()["run_id"])

    def overheads(self) -> dict[str, float]:
        """Seconds that the runs take, and over as many bare jobs, for each step."""
        self.seconds(self.run("bench-chain"))  # what is made once is made
        self.bare(3)
        bare = self.bare(CHAIN)
        at_once = self.bare_at_once(FAN)
        chains = [self.seconds(self.run("bench-chain")) for _ in range(REPEATS)]
        fans = [self.seconds(self.run("bench-fan")) for _ in range(REPEATS)]
        return {
            "chain_run": median(chains), "fan_run": median(fans), "bare_job": bare,
            "over_chain": max(median(chains) - CHAIN * bare, 0.0) / CHAIN,
            "over_fan": max(median(fans) - at_once, 0.0) / FAN,
        }  # fmt: skip

    def bare(self, count: int) -> float:
        """Mean seconds of a bare job from its row's making to its end, one after the other."""
        found = [self._job({"model_id": MODEL, "input": {"n": n}}) for n in range(count)]
        return sum(found) / len(found)

    def _job(self, body: Mapping[str, Any]) -> float:
        job_id = self.http.post("/api/jobs", json=body).json()["job_id"]
        query = "select extract(epoch from completed_at - created_at) from jobs where id = %s"
        wait_for(lambda: self._value(query, job_id) is not None, 0.005)
        return float(self._value(query, job_id))

    def bare_at_once(self, count: int) -> float:
        """Seconds that as many bare jobs take together."""
        jobs = [{"model_id": MODEL, "input": {"n": n}} for n in range(count)]
        made = self.http.post("/api/jobs/batch", json={"jobs": jobs}).json()["jobs"]
        ids = [job["job_id"] for job in made]
        query = (
            "select case when count(completed_at) = count(*) then "
            "extract(epoch from max(completed_at) - min(created_at)) end from jobs where id = any(%s)"
        )
        wait_for(lambda: self._value(query, ids) is not None, 0.01)
        return float(self._value(query, ids))

    def seconds(self, run_id: str) -> float:
        """How long a run took, by its row."""
        query = (
            "select extract(epoch from completed_at - created_at) from workflow_runs "
            "where id = %s and state = 'succeeded'"
        )
        wait_for(lambda: self._value(query, run_id) is not None, 0.01)
        return float(self._value(query, run_id))

    def starts(self) -> dict[str, float]:
        """Seconds from a trigger (the request's sending) to the first job's start."""
        query = (
            "select extract(epoch from min(j.started_at)) from jobs j join workflow_steps s "
            "on s.id = j.workflow_step_id where s.run_id = %s"
        )
        found: list[float] = []
        for _ in range(STARTS):
            began = time.time()
            run_id = self.run("bench-three")
            self.seconds(run_id)
            found.append(float(self._value(query, run_id)) - began)
        cuts = quantiles(found, n=100, method="inclusive")
        return {"p50": cuts[49], "p99": cuts[98]}

    def many(self, count: int, hold: float) -> dict[str, float]:
        """As many runs at once: until they have ended, what that takes, and what Dagster has.

        Each waits `hold` seconds in its first step, so that all are live together.
        """
        engine = self.up["pids"]["workflow-engine"]
        before = self._events()
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            ids = list(pool.map(lambda _: self.run("bench-three", hold=hold), range(count)))
        sent = time.monotonic() - began
        live, peak = 0, 0.0
        query = (
            "select count(*) filter (where state = 'succeeded'), count(*) filter (where state = "
            "'running') from workflow_runs where id = any(%s)"
        )
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            row = self.database.execute(query, [ids]).fetchone()
            assert row is not None
            live, peak = max(live, row[1]), max(peak, resident(engine))
            if row[0] == count:
                break
            if time.monotonic() > deadline:
                raise SystemExit(f"only {row[0]} of {count} runs ended in time")
            time.sleep(0.2)
        ended = time.monotonic() - began
        behind = "select count(*) from workflow_runs where revision > reported_revision"
        wait_for(lambda: self._value(behind) == 0, 0.1)
        reported = time.monotonic() - began
        events = self._events() - before
        opened = [self._open(run_id) for run_id in ids[:: max(count // 20, 1)]]
        longest = self._value(
            "select max(extract(epoch from completed_at - created_at)) from workflow_runs "
            "where id = any(%s)", ids,
        )  # fmt: skip
        return {
            "sent": sent, "hold": hold, "ended": ended, "reported": reported, "longest_run": float(longest),
            "live_at_once": live, "engine_mib": peak, "events": events,
            "events_per_second": events / reported, "open_median": median(opened),
            "open_max": max(opened),
        }  # fmt: skip

    def _events(self) -> int:
        dsn = f"{self.up['postgres_dsn'].rpartition('/')[0]}/dagster"
        with psycopg.connect(dsn, autocommit=True) as dagster:
            row = dagster.execute("select count(*) from event_logs").fetchone()
        assert row is not None
        return int(row[0])

    def _open(self, run_id: str) -> float:
        shown = self._value("select dagster_run_id from workflow_runs where id = %s", run_id)
        body = {"query": OPEN_RUN, "variables": {"id": shown}}
        began = time.monotonic()
        answer = httpx.post(
            f"{self.up['dagster']}/graphql", json=body, timeout=60, trust_env=False
        ).json()
        took = time.monotonic() - began
        run = answer["data"]["runOrError"]
        assert run["status"] == "SUCCESS", run
        assert len(run["stepStats"]) == 3, run
        return took

    def _value(self, query: str, *values: Any) -> Any:
        row = self.database.execute(query.encode(), list(values)).fetchone()
        return None if row is None else row[0]


def resident(pid: int) -> float:
    """Resident memory of a process, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has no memory")


def dagster_overheads(home: Path) -> dict[str, float]:
    """Stock Dagster: the same graphs by its multiprocess executor, its defaults and SQLite."""
    dagster_home = home / "dagster-stock"
    dagster_home.mkdir()
    (dagster_home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    env = {**os.environ, "DAGSTER_HOME": str(dagster_home)}
    argv = [sys.executable, str(RIVALS / "dagster_graphs.py"), str(CHAIN), str(FAN)]
    return json.loads(last_line(argv, env))


def prefect_overheads(home: Path) -> dict[str, float]:
    """Prefect, in an environment of its own, with the server that it starts by itself."""
    folder = home / "prefect"
    python = folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    env = {"UV_SYSTEM_CERTS": "1", **os.environ, "PREFECT_HOME": str(home / "prefect-home")}
    subprocess.run([*uv, "venv", "-q", str(folder)], check=True, env=env)
    subprocess.run(
        [*uv, "pip", "install", "-q", "-p", str(python), "prefect==3.*"], check=True, env=env
    )
    argv = [str(python), str(RIVALS / "prefect_graphs.py"), str(CHAIN), str(FAN)]
    return json.loads(last_line(argv, env))


def last_line(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """The last line that a program prints."""
    done = subprocess.run(
        argv, env=env, stdout=subprocess.PIPE, text=True, timeout=900, check=False
    )
    if done.returncode:
        raise SystemExit(f"{argv[1]} ended with status {done.returncode}")
    return done.stdout.strip().splitlines()[-1]


def wait_for(found: Callable[[], bool], pause: float = 0.05) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit("it did not come about in time")
        time.sleep(pause)


def print_tables(
    rows: Mapping[str, Mapping[str, float]], starts: Mapping[str, float],
    many: Mapping[str, float], count: int,
) -> None:  # fmt: skip
    """Print what was found, and whether it is what was aimed for."""
    ours = rows["vyvo"]
    print(
        f"\n{'':24}{'chain of ' + str(CHAIN):>14}{'a step':>12}{'fan of ' + str(FAN):>14}{'a step':>12}"
    )
    for name, row in rows.items():
        print(
            f"{name:24}{row['chain_run']:12.3f} s{row['chain_run'] / CHAIN * 1000:9.1f} ms"
            f"{row['fan_run']:12.3f} s{row['fan_run'] / FAN * 1000:9.1f} ms"
        )
    print(
        f"a bare job of the same stack takes {ours['bare_job'] * 1000:.1f} ms: over as many of them a "
        f"step of ours costs {ours['over_chain'] * 1000:.1f} ms in the chain, "
        f"{ours['over_fan'] * 1000:.2f} ms in the fan"
    )
    print(
        f"from trigger to first job's start: p50 {starts['p50']:.3f} s, p99 {starts['p99']:.3f} s "
        f"({verdict(starts['p50'] <= START_GOAL)}: at most {START_GOAL} s)"
    )
    if (stock := rows.get("Dagster, multiprocess")) is not None:
        for kind in ("chain_run", "fan_run"):
            # Against all that our steps take, their jobs included.
            factor = stock[kind] / ours[kind]
            met = verdict(factor >= FACTOR_GOAL)
            print(
                f"{kind}: stock Dagster takes {factor:,.0f} times as long ({met}: {FACTOR_GOAL:.0f})"
            )
    print(
        f"\n{count:,} runs of three steps at once: all ended after {many['ended']:.1f} s "
        f"({many['sent']:.1f} s of sending, {many['hold']:.0f} s of waiting in each), the longest run {many['longest_run']:.1f} s, "
        f"{many['live_at_once']:.0f} live at once in {many['engine_mib']:.0f} MiB\n"
        f"Dagster was told all after {many['reported']:.1f} s: {many['events']:,.0f} events, "
        f"{many['events_per_second']:,.0f}/s; opening one by GraphQL {many['open_median']:.3f} s, "
        f"at most {many['open_max']:.3f} s ({verdict(many['open_max'] < OPEN_GOAL)})"
    )


def verdict(met: bool) -> str:
    """Whether a goal was met."""
    return "met" if met else "NOT met"


if __name__ == "__main__":
    main()
