"""Which launchers a host has, as its settings say."""

from pathlib import Path
from uuid import UUID

from vyvo_dagster.agent.envfile import EnvDirectory
from vyvo_dagster.agent.runners.base import Launcher
from vyvo_dagster.agent.runners.container import ContainerLauncher
from vyvo_dagster.agent.runners.engine import Engine
from vyvo_dagster.agent.runners.noop import NoopLauncher
from vyvo_dagster.agent.runners.process import ProcessLauncher
from vyvo_dagster.agent.runners.systemctl import Systemctl
from vyvo_dagster.agent.runners.systemd import SystemdLauncher
from vyvo_dagster.settings import AgentSettings

__all__ = ["make_launchers"]


def make_launchers(
    settings: AgentSettings,
    data_dir: Path,
    node_id: UUID,
    engine: Engine | None,
    env_files: EnvDirectory,
) -> list[Launcher]:
    """In order of preference.

    Args:
        data_dir: the agent's own folder.
        node_id: whose runners these are.
        engine: the container engine, where there is one.
        env_files: where units read what they run.
    """
    venvs = (settings.venv_dir or data_dir / "venvs").absolute()
    kinds: list[Launcher] = [ProcessLauncher(venvs, data_dir / "runners")]
    if engine is not None:
        kinds.append(ContainerLauncher(engine, node_id))
    if settings.runners == "systemd":
        host = {
            "VYVO_RUNNER_NODE_ID": str(node_id),
            "VYVO_RUNNER_VENV_DIR": str(venvs),
            "VYVO_RUNNER_STATE_DIR": str(data_dir / "runners"),
        }
        if settings.docker_host is not None:
            host["VYVO_RUNNER_DOCKER_HOST"] = settings.docker_host
        systemctl = Systemctl(user=settings.systemd_user)
        kinds = [SystemdLauncher(systemctl, kinds, env_files, data_dir / "units", host)]
    return [*kinds, NoopLauncher(allowed=settings.allow_noop)]
