"""The parts of `vyvo up` above the servers, and the environment that they share."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from vyvo_dagster.errors import Unavailable
from vyvo_dagster.local import probes
from vyvo_dagster.local.credentials import Credentials
from vyvo_dagster.local.forking import Forkserver
from vyvo_dagster.local.parts import Part
from vyvo_dagster.local.ports import LOOPBACK
from vyvo_dagster.local.process import STACK_VARIABLE
from vyvo_dagster.settings import EngineChoice

__all__ = [
    "Addresses",
    "agent",
    "dagster_forkserver",
    "dagster_parts",
    "environment",
    "service_parts",
    "write_dagster_home",
]

_LOCATION = "vyvo"
_WORKFLOWS = "workflows"
_DAGSTER_PREFIX = "/dagster"


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the parts of one stack are; the port of what is off is None."""

    postgres_dsn: str
    dagster_postgres_dsn: str
    redis_url: str
    s3_endpoint: str
    api_port: int
    orchestrator_port: int
    code_server_port: int
    workflow_code_port: int
    workflow_port: int
    workflow_reporter_port: int
    worker_port: int
    agent_ports: tuple[int, ...] = ()
    dagster_port: int | None
    grpc_port: int | None = None

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.api_port}"

    @property
    def dagster_url(self) -> str | None:
        """The webserver itself, which asks nobody who they are: for parts of the stack only."""
        if self.dagster_port is None:
            return None
        return f"http://{LOOPBACK}:{self.dagster_port}{_DAGSTER_PREFIX}"

    @property
    def dagster_ui(self) -> str | None:
        """Dagster behind the api's authentication."""
        return None if self.dagster_port is None else f"{self.api_url}{_DAGSTER_PREFIX}"

    @property
    def metrics_urls(self) -> dict[str, str]:
        """Where each part of the stack that measures is scraped, by the part's name."""
        ports = {
            "api": self.api_port,
            "orchestrator": self.orchestrator_port,
            "workflow-engine": self.workflow_port,
        }
        if self.dagster_port is not None:
            ports |= {"workflow-reporter": self.workflow_reporter_port, "worker": self.worker_port}
        ports |= {f"agent-{n}": port for n, port in enumerate(self.agent_ports, 1)}
        return {name: f"http://{LOOPBACK}:{port}/metrics" for name, port in ports.items()}

    @property
    def grpc_url(self) -> str | None:
        return None if self.grpc_port is None else f"grpc://{LOOPBACK}:{self.grpc_port}"


def environment(
    addresses: Addresses,
    credentials: Credentials,
    *,
    data_dir: Path,
    engine: EngineChoice,
    mark: str,
    hosts_engine: str | None = None,
    agents: int = 0,
) -> dict[str, str]:
    """What every part gets: this process's environment with the stack's own settings over it.

    Args:
        hosts_engine: URL of the engine that is that of all `agents`, for ops that are tagged for
            them; what the environment says of engines goes before it.
    """
    programs = str(Path(sys.executable).parent)
    env = {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        STACK_VARIABLE: mark,
        "VYVO_POSTGRES_DSN": addresses.postgres_dsn,
        "VYVO_REDIS_URL": addresses.redis_url,
        "VYVO_DATA_DIR": str(data_dir),
        "VYVO_API_HOST": LOOPBACK,
        "VYVO_API_PORT": str(addresses.api_port),
        "VYVO_API_URL": addresses.api_url,
        "VYVO_GRPC_PORT": str(addresses.grpc_port or 0),
        "VYVO_ORCHESTRATOR_PORT": str(addresses.orchestrator_port),
        "VYVO_WORKFLOW_PORT": str(addresses.workflow_port),
        "VYVO_WORKFLOW_REPORTER_PORT": str(addresses.workflow_reporter_port),
        "VYVO_WORKER_PORT": str(addresses.worker_port),
        "VYVO_METRICS_HOST": LOOPBACK,
        "VYVO_ADMIN_KEY": credentials.admin_key,
        "VYVO_JOIN_TOKEN": credentials.join_token,
        "VYVO_ENGINE": engine,
        "VYVO_S3_ENDPOINT": addresses.s3_endpoint,
        "VYVO_S3_ACCESS_KEY": credentials.s3_access_key,
        "VYVO_S3_SECRET_KEY": credentials.s3_secret_key,
    }
    if addresses.dagster_url is not None:
        env |= {
            "VYVO_DAGSTER_URL": addresses.dagster_url,
            "VYVO_WORKFLOW_CODE_SERVER": f"{LOOPBACK}:{addresses.workflow_code_port}",
            "DAGSTER_HOME": str(data_dir / "dagster"),
            # psycopg2 by name: SQLAlchemy reads plain postgresql:// as psycopg 3, with which
            # dagster-postgres' NOTIFY fails.
            "VYVO_DAGSTER_POSTGRES_URL": addresses.dagster_postgres_dsn.replace(
                "postgresql://", "postgresql+psycopg2://", 1
            ),
        }
    else:
        env.pop("VYVO_DAGSTER_URL", None)
    if hosts_engine is not None and "VYVO_HOSTS_ENGINES" not in os.environ:
        # By name and not for all: nodes that join from elsewhere have engines of their own.
        engines = {_node(number): hosts_engine for number in range(1, agents + 1)}
        env["VYVO_HOSTS_ENGINES"] = json.dumps(engines)
        env.setdefault("VYVO_HOSTS_NETWORK", "host")
        env.setdefault("VYVO_HOSTS_WEIGHTS_DIR", str(data_dir / "agents" / "{node}" / "weights"))
    return env


def service_parts(addresses: Addresses) -> list[Part]:
    """Migrations, api, orchestrator and workflow engine."""
    return [
        Part(
            name="migrate",
            argv=_vyvo("migrate"),
            url="schema and buckets",
            ready=probes.ended_well,
            needs=("postgres", "s3"),
            preloads=True,
            one_shot=True,
        ),
        Part(
            name="api",
            argv=_vyvo("api"),
            url=addresses.api_url,
            ready=probes.answers_ok(f"{addresses.api_url}/readyz"),
            needs=("migrate", "redis"),
            preloads=True,
            stop_rank=2,
        ),
        Part(
            name="orchestrator",
            argv=_vyvo("orchestrator"),
            url=f"http://{LOOPBACK}:{addresses.orchestrator_port}",
            ready=probes.answers_ok(f"http://{LOOPBACK}:{addresses.orchestrator_port}/healthz"),
            needs=("migrate", "redis"),
            preloads=True,
            stop_rank=2,
        ),
        Part(
            name="workflow-engine",
            argv=_vyvo("workflow-engine"),
            url=f"http://{LOOPBACK}:{addresses.workflow_port}",
            ready=probes.answers_ok(f"http://{LOOPBACK}:{addresses.workflow_port}/healthz"),
            needs=("migrate", "redis"),
            preloads=True,
            stop_rank=2,
        ),
    ]


def agent(
    addresses: Addresses,
    credentials: Credentials,
    *,
    number: int,
    data_dir: Path,
    engine: EngineChoice,
    inherited: Mapping[str, str],
) -> Part:
    """The agent `local-<number>`; of the stack's settings it gets only what an agent may know."""
    name = _node(number)
    home = data_dir / "agents" / name
    withheld = {
        variable: None
        for variable in inherited
        if variable.startswith("VYVO_") and not variable.startswith("VYVO_AGENT_")
    }
    kept = {STACK_VARIABLE: inherited[STACK_VARIABLE]}
    return Part(
        name=f"agent-{number}",
        argv=_vyvo("agent"),
        url=name,
        ready=probes.node_is_ready(addresses.api_url, credentials.admin_key, name),
        needs=("api", "orchestrator"),
        env={
            **withheld,
            **kept,
            "DAGSTER_HOME": None,
            "VYVO_DAGSTER_POSTGRES_URL": None,
            "VYVO_AGENT_API_URL": addresses.api_url,
            "VYVO_AGENT_JOIN_TOKEN": credentials.join_token,
            "VYVO_AGENT_NAME": name,
            "VYVO_AGENT_DATA_DIR": str(home),
            "VYVO_AGENT_ENV_DIR": str(home / "env"),
            # Where the venv build backend of the same machine puts its environments.
            "VYVO_AGENT_VENV_DIR": str(data_dir / "venvs"),
            "VYVO_AGENT_ENGINE": engine,
            "VYVO_AGENT_METRICS_PORT": str(addresses.agent_ports[number - 1]),
            "VYVO_AGENT_METRICS_HOST": LOOPBACK,
        },
        preloads=True,
        stop_grace=25.0,
        stop_rank=1,
    )


def dagster_forkserver(*, env: Mapping[str, str], logs: Path) -> Forkserver:
    """What Dagster's processes are forked from: they share most of what they import."""
    modules = (
        "dagster_webserver.cli",
        "dagster._daemon.cli",
        "dagster_postgres",
        "celery.__main__",
        "celery.bin.celery",
        "celery.concurrency.prefork",
        "vyvo_dagster.definitions",
        "vyvo_dagster.execution.workflow_launcher",
        "vyvo_dagster.execution.workflows.main",
        "ops.workflow_jobs",
        "vyvo_dagster.execution.celery_app",
    )
    return Forkserver(modules, env=env, logs=logs)


def dagster_parts(addresses: Addresses, *, data_dir: Path, forkserver: Forkserver) -> list[Part]:
    """Code servers, webserver, daemon, the Celery worker that executes the runs, and who tells
    Dagster of the runs of workflows.
    """
    url = addresses.dagster_url
    assert url is not None
    workspace = data_dir / "dagster" / "workspace.yaml"
    port = addresses.code_server_port

    def code_server(name: str, module: str, location: str, port: int) -> Part:
        return Part(
            name=name,
            argv=(
                *("dagster._cli:main", "api", "grpc", "-m", module),
                *("-h", LOOPBACK, "-p", str(port), "--location-name", location),
            ),
            url=f"grpc://{LOOPBACK}:{port}",
            ready=probes.accepts_connections(port),
            needs=("migrate", "redis"),
            spawner=forkserver.fork,
            start_timeout=120.0,
            stop_rank=3,
        )

    return [
        code_server("code-server", "vyvo_dagster.definitions", _LOCATION, port),
        code_server("workflow-jobs", "ops.workflow_jobs", _WORKFLOWS, addresses.workflow_code_port),
        Part(
            name="webserver",
            argv=(
                *("dagster_webserver.cli:main", "-w", str(workspace)),
                *("-h", LOOPBACK, "-p", str(addresses.dagster_port)),
                *("--path-prefix", _DAGSTER_PREFIX),
            ),
            url=url,
            ready=probes.location_is_loaded(url),
            needs=("postgres", "code-server", "workflow-jobs"),
            spawner=forkserver.fork,
            start_timeout=120.0,
            stop_rank=2,
        ),
        Part(
            name="daemon",
            argv=("dagster._daemon.cli:main", "run", "-w", str(workspace)),
            url="sensors, schedules and run monitoring",
            ready=probes.daemon_beats(url),
            # The webserver first: it makes the tables that both would otherwise make at once.
            needs=("webserver",),
            spawner=forkserver.fork,
            start_timeout=120.0,
            stop_rank=1,
        ),
        Part(
            name="workflow-reporter",
            argv=("vyvo_dagster.execution.workflows.main:run",),
            url=f"http://{LOOPBACK}:{addresses.workflow_reporter_port}",
            ready=probes.answers_ok(
                f"http://{LOOPBACK}:{addresses.workflow_reporter_port}/healthz"
            ),
            # As for the daemon: the webserver makes the tables.
            needs=("webserver",),
            spawner=forkserver.fork,
            start_timeout=120.0,
            stop_rank=1,
        ),
        Part(
            name="worker",
            argv=(
                *("celery.__main__:main", "-A", "vyvo_dagster.execution.celery_app", "worker"),
                *("--pool", "prefork", "--concurrency", "2", "--loglevel", "INFO"),
                *("--without-gossip", "--without-mingle", "-Q", "dagster"),
                *("--hostname", f"dagster@%h-{port}"),
            ),
            url="2 Dagster runs at a time",
            ready=probes.log_says(b" ready."),
            needs=("webserver", "redis"),
            spawner=forkserver.fork,
            start_timeout=120.0,
            stop_grace=20.0,
            stop_rank=1,
        ),
    ]


def write_dagster_home(data_dir: Path, addresses: Addresses) -> None:
    """Make `data_dir/dagster` a DAGSTER_HOME whose workspace is this stack's code servers."""
    home = data_dir / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_dagster_yaml(), home / "dagster.yaml")
    servers = {_LOCATION: addresses.code_server_port, _WORKFLOWS: addresses.workflow_code_port}
    entries = [
        {"grpc_server": {"host": LOOPBACK, "port": port, "location_name": name}}
        for name, port in servers.items()
    ]
    (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": entries}))


def _dagster_yaml() -> Path:
    package = Path(__file__).parents[1]
    # At the root of a checkout; inside the package where a wheel brought it.
    for folder in (package.parent, package):
        if (folder / "dagster.yaml").exists():
            return folder / "dagster.yaml"
    raise Unavailable(f"dagster.yaml is missing beside {package}; reinstall vyvo-dagster")


def _node(number: int) -> str:
    return f"local-{number}"


def _vyvo(command: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "vyvo_dagster.cli", command)
