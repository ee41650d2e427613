"""What this host has, as it is told when joining, and what of it is free."""

import os
import re
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vyvo_dagster.agent.nvml import Nvml
from vyvo_dagster.domain.node import parse_node_name
from vyvo_dagster.protocol.node import Capabilities

__all__ = ["detect", "memory_available_bytes", "node_name"]

_MEMINFO = Path("/proc/meminfo")


def node_name(configured: str | None) -> str:
    """The configured name, checked; else the host's, made to fit.

    Raises:
        InvalidInput: the configured name is not a node name.
    """
    if configured is not None:
        return parse_node_name(configured)
    fitted = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:63].strip("._-")
    return parse_node_name(fitted or "node")


def detect(nvml: Nvml, engine_version: str | None) -> Capabilities:
    """Measure this host. Blocks briefly.

    Args:
        nvml: source of the GPUs.
        engine_version: version of the container engine that runners will use; None when runners
            are processes.
    """
    return Capabilities(
        hostname=socket.gethostname()[:255] or "localhost",
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=nvml.gpus(),
        driver=nvml.driver(),
        engine="process" if engine_version is None else "docker",
        engine_version=engine_version,
        agent_version=_own_version(),
    )


def memory_available_bytes() -> int:
    """Memory that can be taken without swapping, as the kernel estimates it; 0 if it does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _own_version() -> str:
    try:
        return version("vyvo-dagster")
    except PackageNotFoundError:
        return "0"
