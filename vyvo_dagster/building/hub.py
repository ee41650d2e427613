"""Weights from a hub that speaks Hugging Face's API, by its own client in a process of its own.

The client knows the hub's ways (revisions, LFS, resumption) and cannot be stopped from outside; a
process can. The token reaches it by its environment and nobody else. A whole repository becomes one
tar with names in order and no times, so that equal files have an equal checksum.
"""

import json
import os
import shutil
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.transfer import Progress
from vyvo_dagster.building.types import BuildCanceled
from vyvo_dagster.errors import BuildFailed

__all__ = ["Hub", "fetch_from_hub"]

_TRIES: Final = 3
_MARK: Final = "vyvo-hub "
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub, and as whom.

    Args:
        endpoint: URL; None for Hugging Face's.
        token: shown to it; None for none.
        seconds: what one try may take.
    """

    endpoint: str | None = None
    token: SecretStr | None = field(default=None, repr=False)
    seconds: float = 6 * 3600.0


class _Cancel:
    """A cancel event that asks the build's own check."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def is_set(self) -> bool:
        """Whether the build is canceled."""
        try:
            self._progress(0)
        except BuildCanceled:
            return True
        return False


def fetch_from_hub(
    hub: Hub, repo: str, revision: str | None, file: str, part: Path, progress: Progress, *,
    wait: float = 1.0,
) -> None:  # fmt: skip
    """Write a file of a repository, or (`file` empty) all of it as a tar, to `part`.

    What an earlier try brought lies beside `part` and is gone on with.

    Raises:
        BuildFailed: there is no such thing, the token does not open it, or the hub did not answer
            three times; the detail quotes the client.
    """
    folder = part.with_suffix(".hub")
    for number in range(1, _TRIES + 1):
        try:
            found = _ask(hub, repo, revision, file, folder, progress)
            break
        except _Temporary as error:
            if number == _TRIES:
                raise BuildFailed(f"weights: hf://{repo}: {error.detail}") from error
            progress.say(f"{error.detail}; trying again")
            time.sleep(wait * 2 ** (number - 1))
    else:  # pragma: no cover
        raise AssertionError
    progress.say(f"hf://{repo} is at commit {found['commit']}")
    if file:
        (folder / file).replace(part)
    else:
        _pack(folder, part, progress)
    shutil.rmtree(folder, ignore_errors=True)


class _Temporary(BuildFailed):
    """The hub may answer the next time."""


def _ask(
    hub: Hub, repo: str, revision: str | None, file: str, folder: Path, progress: Progress
) -> dict[str, str]:
    answer: dict[str, str] = {}

    def on_line(line: str) -> tuple[str, str] | None:
        if line.startswith(_MARK):
            answer.update(json.loads(line.removeprefix(_MARK)))
            return None
        return "weights", line

    env = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HOME": str(folder.parent / ".hf"),
        "VYVO_HUB_TOKEN": hub.token.get_secret_value() if hub.token else "",
        **({"HF_ENDPOINT": hub.endpoint} if hub.endpoint else {}),
    }
    argv = [sys.executable, "-m", "vyvo_dagster.building.hub_client", repo, revision or "", file,
            str(folder)]  # fmt: skip
    run_logged(argv, step="weights", log=progress.log, cancel=_Cancel(progress), timeout=hub.seconds,
               env=env, on_line=on_line)  # fmt: skip
    if "error" in answer:
        kind = BuildFailed if answer["kind"] == "final" else _Temporary
        raise kind(f"weights: hf://{repo}: {answer['error']}")
    if "commit" not in answer:
        raise _Temporary("weights: the hub's client said nothing")
    return answer


def _pack(folder: Path, part: Path, progress: Progress) -> None:
    """All files under `folder`, but the client's own, as one tar."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and path.relative_to(folder).parts[0] != ".cache"
    )
    progress.say(f"packing {len(files)} files")
    done = 0
    with (
        part.open("wb") as out,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in files:
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = path.stat().st_size
            with path.open("rb") as source:
                tar.addfile(info, _Watched(source, progress))
            done += info.size
            path.unlink()
            progress(0)
        out.flush()
    with part.open("rb") as out:
        os.fsync(out.fileno())


class _Watched:
    """A file whose reader notices a cancel."""

    def __init__(self, file: object, progress: Progress) -> None:
        self._file, self._progress = file, progress

    def read(self, size: int = -1) -> bytes:
        """Read, unless the build was canceled."""
        self._progress(0)
        return self._file.read(size)  # type: ignore[attr-defined]
