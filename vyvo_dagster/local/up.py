"""`vyvo up`: the whole stack on this machine, in the foreground, until a signal."""

import asyncio
import fcntl
import json
import os
import secrets
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vyvo_dagster.errors import Conflict, InvalidInput, VyvoError
from vyvo_dagster.local.credentials import Credentials, load_or_create
from vyvo_dagster.local.engine import describe_engine, found_engine
from vyvo_dagster.local.guardian import Guardian
from vyvo_dagster.local.parts import Part
from vyvo_dagster.local.ports import Ports
from vyvo_dagster.local.postgres import postgres, postgres_dsn
from vyvo_dagster.local.process import kill_marked
from vyvo_dagster.local.report import Report
from vyvo_dagster.local.servers import s3, valkey
from vyvo_dagster.local.stack import (
    Addresses,
    agent,
    dagster_forkserver,
    dagster_parts,
    environment,
    service_parts,
    write_dagster_home,
)
from vyvo_dagster.local.supervisor import Supervisor
from vyvo_dagster.settings import EngineChoice

__all__ = ["UpOptions", "up"]

_API_PORT, _DAGSTER_PORT = 8080, 3000


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """Options of the command; a port of None takes the remembered, the usual or a free one.

    A `grpc_port` of None serves no gRPC.
    """

    data_dir: Path
    port: int | None = None
    dagster_port: int | None = None
    grpc_port: int | None = None
    dagster: bool = True
    servers_only: bool = False
    engine: EngineChoice = "auto"
    agents: int = 1
    as_json: bool = False


def up(options: UpOptions) -> int:
    """Run the stack until SIGINT or SIGTERM; the exit status.

    0 after an orderly stop, 1 when a part did not start or the data directory is in use, 130 when
    a signal came while it started. Call it in the main thread: children live as long as it.
    """
    report = Report(sys.stderr if options.as_json else sys.stdout)
    data_dir = options.data_dir.absolute()
    try:
        if any(character in str(data_dir) for character in "\0\n#"):
            raise InvalidInput(f"--data-dir {str(data_dir)!r} holds a newline or '#'; rename it")
        data_dir.mkdir(parents=True, exist_ok=True)
        data_dir = data_dir.resolve()
        with _locked(data_dir):
            kill_marked(f"{data_dir}#", grace=3.0)  # of a start whose guardian was killed too
            return asyncio.run(_run(options, data_dir, report))
    except VyvoError as error:
        _explain(report, error)
        return 1
    except OSError as error:
        report.text(f"vyvo up: {error}")
        return 1


def _locked(data_dir: Path) -> IO[str]:
    lock = (data_dir / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        owner = lock.read().strip() or "unknown"
        lock.close()
        raise Conflict(
            f"{data_dir} is in use by the `vyvo up` with pid {owner}; "
            "stop that one, or choose another --data-dir"
        ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


async def _run(options: UpOptions, data_dir: Path, report: Report) -> int:
    ports = Ports(data_dir / "ports.json")
    credentials = load_or_create(data_dir / "secrets.json")
    mark = f"{data_dir}#{secrets.token_hex(6)}"
    servers, addresses = _servers(options, data_dir, ports, credentials)
    env = environment(
        addresses, credentials, data_dir=data_dir, engine=options.engine, mark=mark,
        hosts_engine=await found_engine(options.engine), agents=options.agents,
    )  # fmt: skip
    parts = [*servers, *([] if options.servers_only else service_parts(addresses))]
    logs = data_dir / "logs"
    forkserver = dagster_forkserver(env=env, logs=logs)
    if addresses.dagster_port is not None:
        write_dagster_home(data_dir, addresses)
        forkserver.start()
        parts += dagster_parts(addresses, data_dir=data_dir, forkserver=forkserver)
    parts += [
        agent(
            addresses,
            credentials,
            number=number,
            data_dir=data_dir,
            engine=options.engine,
            inherited=env,
        )
        for number in range(1, options.agents + 1)
    ]
    supervisor = Supervisor(parts, env=env, logs=logs, gates=data_dir / "gates", report=report)
    stopping = _on_signals(supervisor)
    guardian = Guardian(mark, logs / "guardian.log")
    try:
        if not await _started(supervisor, stopping, report):
            return 130
        if options.as_json:
            _print_json(addresses, credentials, supervisor.pids)
        report.text(await _summary(options, addresses, data_dir, report.elapsed))
        await _kept_running(supervisor, stopping, report)
    except VyvoError as error:
        _explain(report, error)
        return 1
    else:
        return 0
    finally:
        await supervisor.stop()
        await forkserver.stop()
        left = await asyncio.to_thread(kill_marked, mark, grace=2.0)
        if left:
            report.text(f"ended {len(left)} processes that the parts had left")
        guardian.dismiss()
        report.part("stack", "stopped")


async def _started(supervisor: Supervisor, stopping: asyncio.Event, report: Report) -> bool:
    """Start everything; False when a signal came first."""
    stopped = asyncio.create_task(stopping.wait())
    starting = asyncio.create_task(supervisor.start())
    try:
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return True
        report.text("stopping while it starts; once more kills it")
        return False
    finally:
        await _ended(starting)
        await _ended(stopped)


async def _kept_running(supervisor: Supervisor, stopping: asyncio.Event, report: Report) -> None:
    """Restart what dies until a signal comes."""
    stopped = asyncio.create_task(stopping.wait())
    watching = asyncio.create_task(supervisor.watch())
    try:
        await asyncio.wait({watching, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        report.text("\nstopping; once more kills it")
    finally:
        await _ended(watching)
        await _ended(stopped)


def _print_json(addresses: Addresses, credentials: Credentials, pids: dict[str, int]) -> None:
    answer = {
        "api": addresses.api_url,
        "admin_key": credentials.admin_key,
        "dagster": addresses.dagster_url,
        "dagster_ui": addresses.dagster_ui,
        "grpc": addresses.grpc_url,
        "s3": addresses.s3_endpoint,
        "postgres_dsn": addresses.postgres_dsn,
        "redis_url": addresses.redis_url,
        "metrics": addresses.metrics_urls,
        "pids": {"up": os.getpid(), **pids},
    }
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


async def _ended(task: "asyncio.Task[object]") -> None:
    task.cancel()
    await asyncio.wait({task})


def _servers(
    options: UpOptions, data_dir: Path, ports: Ports, credentials: Credentials
) -> tuple[list[Part], Addresses]:
    """The servers' parts, and where everything of the stack will be."""

    def chosen(name: str, asked: int | None, default: int) -> int:
        return ports.take(name, default=default) if asked is None else ports.insist(name, asked)

    # Those that a person asked for first, so that no other part takes them.
    api_port = chosen("api", options.port, _API_PORT)
    dagster_port = (
        chosen("dagster", options.dagster_port, _DAGSTER_PORT) if options.dagster else None
    )
    grpc_port = None if options.grpc_port is None else ports.insist("grpc", options.grpc_port)
    database_port = ports.take("postgres")
    password = credentials.postgres_password
    database = postgres(
        data_dir, port=database_port, password=password, databases=("vyvo", "dagster")
    )
    streams = valkey(data_dir, port=ports.take("redis"), password=credentials.redis_password)
    storage = s3(
        data_dir,
        ports,
        access_key=credentials.s3_access_key,
        secret_key=credentials.s3_secret_key,
    )
    addresses = Addresses(
        postgres_dsn=database.url,
        dagster_postgres_dsn=postgres_dsn(database_port, password, "dagster"),
        redis_url=streams.url,
        s3_endpoint=storage.endpoint,
        api_port=api_port,
        orchestrator_port=ports.take("orchestrator"),
        code_server_port=ports.take("code-server"),
        workflow_code_port=ports.take("workflow-jobs"),
        workflow_port=ports.take("workflow-engine"),
        workflow_reporter_port=ports.take("workflow-reporter"),
        worker_port=ports.take("worker"),
        agent_ports=tuple(ports.take(f"agent-{n}") for n in range(1, options.agents + 1)),
        dagster_port=dagster_port,
        grpc_port=grpc_port,
    )
    return [database, streams, storage.part], addresses


def _on_signals(supervisor: Supervisor) -> asyncio.Event:
    """Event of the first signal; a second one turns the stop into a kill."""
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            supervisor.force()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stopping


async def _summary(options: UpOptions, addresses: Addresses, data_dir: Path, elapsed: float) -> str:
    if options.servers_only:
        return (
            f"\nthe servers answer after {elapsed:.1f} s; nothing else runs\nCtrl-C stops them.\n"
        )
    return (
        f"\neverything answers after {elapsed:.1f} s\n"
        f"  api        {addresses.api_url}  (its reference: {addresses.api_url}/docs)\n"
        + (f"  grpc       {addresses.grpc_url}\n" if addresses.grpc_url else "")
        + f"  dagster    {_dagster(addresses)}\n"
        f"  s3         {addresses.s3_endpoint}\n"
        f"  engine     {await describe_engine(options.engine)}\n"
        f"  admin key  in {data_dir / 'secrets.json'}\n"
        f"  logs       {data_dir / 'logs'}\n"
        "Ctrl-C stops all of it.\n"
    )


def _dagster(addresses: Addresses) -> str:
    if addresses.dagster_ui is None:
        return "off (--no-dagster)"
    return f"{addresses.dagster_ui}  (sign in with the admin key)"


def _explain(report: Report, error: VyvoError) -> None:
    report.text(f"vyvo up: {error.detail}")
    log_tail = str(error.extra.get("log_tail") or "")
    for line in log_tail.splitlines():
        report.text(f"  | {line}")
