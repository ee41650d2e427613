"""What the executor asks of whoever knows the hosts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["DockerHost", "HostResolver", "Occupancy", "Placement", "Unplaced"]


@dataclass(frozen=True, slots=True)
class DockerHost:
    """A host by the engine that answers for it.

    Args:
        name: that people know it by.
        url: `unix:///path`, `tcp://host:port` or `ssh://user@host[:port]`.
        tls_dir: folder of ca.pem, cert.pem and key.pem, for tcp. Plain tcp is for loopback only.
    """

    name: str
    url: str
    tls_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What steps hold on one engine now, of any run: GPUs by UUID, and how many steps there are."""

    devices: frozenset[str]
    steps: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a step goes and with what. Memory in bytes; None is no limit."""

    host: DockerHost
    devices: tuple[str, ...] = ()
    memory_bytes: int | None = None
    cpus: float | None = None
    read_only_mounts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Folder of the host → where the container sees it."""


@dataclass(frozen=True, slots=True)
class Unplaced:
    """No host now: the step waits. `reason` is shown to a person."""

    reason: str


class HostResolver(Protocol):
    """Decides which steps leave the run's process, and to which host each goes."""

    def routes(self, tags: Mapping[str, str]) -> bool:
        """Whether a step with these tags goes to a host. No I/O."""
        ...

    def hosts(self, tags: Mapping[str, str] | None = None) -> Sequence[DockerHost]:
        """The hosts that a step with these tags may go to at some time; all hosts for None."""
        ...

    def place(
        self, tags: Mapping[str, str], occupancy: Mapping[str, Occupancy | None]
    ) -> Placement | Unplaced:
        """Choose a host for one step.

        Args:
            tags: of the step.
            occupancy: by name of the host; None where its engine does not answer.

        Raises:
            ValueError: the tags say nothing that could ever be met.
        """
        ...

    def close(self) -> None:
        """The run has ended; what was opened for it is closed. A later call opens it again."""
        ...
