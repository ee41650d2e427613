"""Metrics of a process that forks workers: one file a process in a folder, served by the first.

Prometheus' client has a mode for this, which its environment variable turns on as it is imported,
for all metrics of a process and for every process that inherits the variable. Here the mode is
turned on later, in a process that was forked with the client imported, and ends with its pool: it
holds for metrics with labels, whose values are made when they are first used.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

__all__ = ["serve", "share"]

_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"


def share(folder: Path) -> None:
    """Keep values that are made from now on in `folder`, which is emptied.

    Call it before processes are forked and before a metric with labels is used.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared: Any = MultiProcessValue()

    class Shared:
        _multiprocess = True

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            # Set only as a value is made: a program that is started from here has its own metrics.
            os.environ[_VARIABLE] = str(folder)
            try:
                return shared(*args, **kwargs)
            finally:
                del os.environ[_VARIABLE]

    values.ValueClass = Shared


def serve(folder: Path, port: int, host: str) -> None:
    """Answer scrapes with the sums over all processes that share `folder`, in a thread.

    Raises:
        OSError: the port is taken.
    """
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))
    start_http_server(port, host, registry)
