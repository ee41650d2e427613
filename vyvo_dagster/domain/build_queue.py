"""Which of the builds that wait may be launched: in order, within the limits."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

__all__ = ["ANY_TEMPLATE", "BuildLimits", "launchable", "no_place"]

K = TypeVar("K")

ANY_TEMPLATE: Final = "*"
"""Stands for the templates that the limits do not name."""


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """How many builds may be at work at a time: on one build host, and of one template."""

    per_host: int
    per_template: Mapping[str, int] = field(default_factory=dict[str, int])

    def of_template(self, template: str) -> int | None:
        """The limit of a template; None where it has none."""
        return self.per_template.get(template, self.per_template.get(ANY_TEMPLATE))


def launchable(
    waiting: Sequence[tuple[K, str]], in_flight: Iterable[str], limits: BuildLimits, hosts: int
) -> list[K]:
    """The builds to launch now, in the order in which they wait.

    A build whose template has its limit at work is passed over, and holds up no other template's.

    Args:
        waiting: build and template, oldest first.
        in_flight: templates of the builds that are launched and have not ended.
        limits: see BuildLimits.
        hosts: build hosts there are.
    """
    at_work = Counter(in_flight)
    free = limits.per_host * max(hosts, 1) - at_work.total()
    found: list[K] = []
    for build, template in waiting:
        if len(found) >= free:
            break
        most = limits.of_template(template)
        if most is None or at_work[template] < most:
            at_work[template] += 1
            found.append(build)
    return found


def no_place(
    template: str, host: str, at_work: Iterable[tuple[str, str | None]], limits: BuildLimits
) -> str | None:
    """Why a build cannot begin on a host yet, or None.

    Args:
        template: of the build.
        host: where it would be executed.
        at_work: template and host of the other builds at work.
        limits: see BuildLimits.
    """
    others = list(at_work)
    here = sum(1 for _, where in others if where == host)
    if here >= limits.per_host:
        return f"{here} builds are at work on {host}, as many as may be"
    alike = sum(1 for kind, _ in others if kind == template)
    most = limits.of_template(template)
    if most is not None and alike >= most:
        return f"{alike} builds of {template} are at work, as many as may be"
    return None
