"""Requirements that a stranger wrote, reduced to what can be locked without running anything.

A requirement names a package of the build host's index, with versions, extras and a marker. What
would fetch or build something else (a URL, a path, `-e`, another requirements file) is refused;
index options are left out, because where packages come from is the build host's to say.
"""

from collections.abc import Iterable
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vyvo_dagster.building.types import Log
from vyvo_dagster.errors import BuildFailed

__all__ = ["plain_requirements"]

_STEP: Final = "source"
_LINES: Final = 2000
_LEFT_OUT: Final = (
    "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--trusted-host",
    "--prefer-binary", "--pre", "--no-binary", "--only-binary", "--use-feature",
)  # fmt: skip
# The platform's own, at the versions that it is tested with.
_OURS: Final = frozenset({"cog", "vyvo-runner"})


def plain_requirements(lines: Iterable[str], where: str, log: Log) -> list[str]:
    """The requirements of a pip requirements file, each in one canonical line.

    Args:
        lines: of the file.
        where: its name, for messages.
        log: told what is left out.

    Raises:
        BuildFailed: a line that is no requirement, or would reach beyond the index.
    """
    found: list[str] = []
    for number, line in enumerate(lines, 1):
        if number > _LINES:
            raise BuildFailed(f"source: {where} has more than {_LINES} lines")
        text = line.split(" #", 1)[0].strip()
        if not text or text.startswith("#"):
            continue
        at = f"{where}, line {number}"
        if text.startswith("-"):
            option = text.replace("=", " ").split()[0]
            if option not in _LEFT_OUT:
                raise BuildFailed(f"source: {at}: {text[:80]!r} is not taken; list packages there")
            log.line(_STEP, f"{at}: {option} is left out; the build host's own index is asked")
            continue
        # Hashes of a lock: it is resolved again, for the image's own Python and platform.
        text = text.split(" --hash", 1)[0].rstrip("\\").strip()
        found += _requirement(text, at, log)
    return found


def _requirement(text: str, at: str, log: Log) -> list[str]:
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        raise BuildFailed(f"source: {at}: {text[:80]!r} is no requirement of a package") from error
    if requirement.url is not None:
        raise BuildFailed(
            f"source: {at}: {requirement.name} by URL is not taken; name a version of the index"
        )
    if canonicalize_name(requirement.name) in _OURS:
        log.line(_STEP, f"{at}: {requirement.name} is left out; the platform's own is used")
        return []
    return [str(requirement)]
