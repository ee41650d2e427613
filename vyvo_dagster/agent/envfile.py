r"""Environment files of runners, in systemd's `EnvironmentFile=` syntax.

Every value is written in double quotes with `\`, `"`, `` ` `` and `$` escaped, which systemd and
POSIX shells read alike (systemd.exec(5), "EnvironmentFile="). Nothing that a reader could take
for more than a value is written at all.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from uuid import UUID

from vyvo_dagster.domain.environment import refused_name, refused_value
from vyvo_dagster.domain.model import file_stem, parse_version
from vyvo_dagster.errors import InvalidEnv

__all__ = ["EnvDirectory", "render"]

_SPECIAL = re.compile(r'[\\"`$]')
_MARK: Final = "# vyvo-agent: assignment "
_OWNED = re.compile(re.escape(_MARK) + r"([0-9a-f-]{36}) of node ([0-9a-f-]{36})")


def render(env: Mapping[str, str]) -> str:
    """The file's text, one variable a line, sorted by name.

    Raises:
        InvalidEnv: what a reader could take for something else, or passes over
            (`domain.environment`).
    """
    lines: list[str] = []
    for name in sorted(env):
        if why := refused_name(name) or refused_value(name, env[name]):
            raise InvalidEnv(why)
        lines.append(f'{name}="{_SPECIAL.sub(lambda m: chr(92) + m[0], env[name])}"\n')
    return "".join(lines)


class EnvDirectory:
    """The folder of one node's environment files.

    The file of a model is `<owner>--<name>.env`: a unit `...@.service` finds it by `%I`. (Not by
    the name as systemd-escape writes it: `EnvironmentFile=` reads its path as a glob, where the
    backslash of an escape is lost.) While two versions of one model are loaded, the
    later one's is `<owner>--<name>@<version>.env`. A first line names the assignment and the node,
    so that files of an earlier start are found again and files of others are never touched.
    """

    def __init__(self, path: Path, node_id: UUID) -> None:
        self.path = path
        self._node_id = node_id
        self._partial = f".{node_id}.partial"

    def write(
        self, assignment_id: UUID, model_id: str, version: str, env: Mapping[str, str]
    ) -> Path:
        """Write an assignment's file, mode 0600, whole or not at all; return its path.

        Raises:
            InvalidModelId, InvalidInput, InvalidEnv: what must not reach a file.
        """
        text = f"{_MARK}{assignment_id} of node {self._node_id}\n{render(env)}"
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = self._place(assignment_id, file_stem(model_id), parse_version(version))
        partial = path.with_name(f".{path.name}{self._partial}")
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return path

    def remove(self, assignment_id: UUID) -> None:
        """Delete an assignment's file; none is no error."""
        for path, owner in self._own():
            if owner == assignment_id:
                path.unlink(missing_ok=True)

    def sweep(self, keep: Iterable[UUID]) -> list[Path]:
        """Delete this node's files of assignments other than `keep`; return which.

        What a write left that was cut off in the middle goes too.
        """
        kept = frozenset(keep)
        stale = [path for path, owner in self._own() if owner not in kept]
        if self.path.is_dir():
            stale += sorted(self.path.glob(f".*{self._partial}"))
        for path in stale:
            path.unlink(missing_ok=True)
        return stale

    def _place(self, assignment_id: UUID, stem: str, version: str) -> Path:
        for name in (f"{stem}.env", f"{stem}@{version}.env"):
            path = self.path / name
            if not path.exists() or self._owner(path) == assignment_id:
                return path
        raise InvalidEnv(
            f"{self.path / stem}.env and its @{version} belong to others; move them away"
        )

    def _own(self) -> list[tuple[Path, UUID]]:
        if not self.path.is_dir():
            return []
        owned = ((path, self._owner(path)) for path in sorted(self.path.glob("*.env")))
        return [(path, owner) for path, owner in owned if owner is not None]

    def _owner(self, path: Path) -> UUID | None:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                found = _OWNED.match(file.readline(256))
        except OSError:
            return None
        return UUID(found[1]) if found and found[2] == str(self._node_id) else None
