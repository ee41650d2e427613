"""The files of a commit, written out of a bare repository by this process itself.

Nothing in a tree is trusted: every path is looked at, every size is known before a byte is written,
and links are made last and checked, so that none is ever written through.
"""

import os
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

from vyvo_dagster.building.types import BuildContext
from vyvo_dagster.errors import BuildFailed

__all__ = ["write_tree"]

_CHUNK: Final = 1 << 20
_PATH_BYTES: Final = 1024
_DEPTH: Final = 64
_LINK_BYTES: Final = 1024
_SECONDS: Final = 300.0
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES: Final = 1024
_LINK, _MODULE, _EXECUTABLE, _FILES = "120000", "160000", "100755", {"100644", "100755", "100664"}


class _Entry(NamedTuple):
    mode: str
    blob: str
    size: int
    path: str


def write_tree(
    bare: Path,
    commit: str,
    folder: Path,
    env: Mapping[str, str],
    *,
    max_files: int,
    max_bytes: int,
    context: BuildContext,
) -> tuple[int, int]:
    """Write the files of `commit` to `folder`, which is made; their number and their bytes.

    Raises:
        BuildFailed: too many files or bytes, a submodule, an LFS pointer, a path or a link that
            leads outside, or two entries of one name.
    """
    entries = _listed(bare, commit, env, max_files, max_bytes, context)
    folder.mkdir(parents=True)
    links: list[tuple[str, bytes]] = []
    with _process(["git", "--git-dir", str(bare), "cat-file", "--batch"], env) as reader:
        for entry in entries:
            context.check_canceled()
            blobs = _blob(reader, entry)
            if entry.mode == _LINK:
                links.append((entry.path, b"".join(blobs)))
            else:
                _write(folder, entry, blobs)
    for path, target in links:
        _link(folder, path, target)
    _check_links(folder, [path for path, _ in links])
    return len(entries), sum(entry.size for entry in entries)


def _listed(
    bare: Path, commit: str, env: Mapping[str, str], max_files: int, max_bytes: int,
    context: BuildContext,
) -> list[_Entry]:  # fmt: skip
    argv = ["git", "--git-dir", str(bare), "ls-tree", "-r", "-z", "-l", "--full-tree", commit]
    entries: list[_Entry] = []
    total, deadline = 0, time.monotonic() + _SECONDS
    # Read as it comes: a tree that holds itself many times over is endless for all practical ends.
    with _process(argv, env) as process:
        for line in _split(process.stdout):
            context.check_canceled()
            entry = _entry(line)
            entries.append(entry)
            total += entry.size
            if len(entries) > max_files:
                raise BuildFailed(f"source: the repository has more than {max_files} files")
            if total > max_bytes:
                raise BuildFailed(
                    f"source: the repository's files are larger than {max_bytes} bytes"
                )
            if time.monotonic() > deadline:
                raise BuildFailed(f"source: listing the files took longer than {_SECONDS:g} s")
        if process.wait(timeout=30) != 0:
            raise BuildFailed("source: git cannot read the commit's tree")
    return entries


def _entry(line: bytes) -> _Entry:
    head, _, raw = line.partition(b"\t")
    mode, _kind, blob, size = head.decode("ascii").split()
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BuildFailed(f"source: the file name {raw[:80]!r} is not UTF-8") from error
    parts = path.split("/")
    # Names that git itself refuses to check out on some system are refused here on all.
    odd = any(
        part in {"", ".", ".."} or part.lower().rstrip(". ") in {".git", "git~1"} for part in parts
    )
    if odd or "\\" in path or not path.isprintable():
        raise BuildFailed(f"source: the file name {path[:80]!r} is not taken")
    if len(raw) > _PATH_BYTES or len(parts) > _DEPTH:
        raise BuildFailed(f"source: the file name {path[:80]!r}... is too long or too deep")
    if mode == _MODULE:
        raise BuildFailed(
            f"source: {path[:200]} is a submodule, which is not fetched; put its files into the repository"
        )
    if mode != _LINK and mode not in _FILES:
        raise BuildFailed(f"source: {path[:200]} is neither a file nor a link (mode {mode})")
    if mode == _LINK and int(size) > _LINK_BYTES:
        raise BuildFailed(f"source: the link {path[:200]} is too long")
    return _Entry(mode, blob, int(size), path)


def _blob(process: "subprocess.Popen[bytes]", entry: _Entry) -> Generator[bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{entry.blob}\n".encode())
    process.stdin.flush()
    head = process.stdout.readline(256).decode(errors="replace").split()
    if head[1:] != ["blob", str(entry.size)]:
        raise BuildFailed(f"source: git cannot read {entry.path[:200]}")
    left = entry.size
    while left:
        chunk = process.stdout.read(min(left, _CHUNK))
        if not chunk:
            raise BuildFailed(f"source: git cannot read {entry.path[:200]}")
        left -= len(chunk)
        if left == 0 and len(chunk) == entry.size <= _LFS_BYTES and chunk.startswith(_LFS):
            raise BuildFailed(
                f"source: {entry.path[:200]} is a Git LFS pointer, whose file is not fetched; "
                "name weights by weights_uri"
            )
        yield chunk
    process.stdout.read(1)


def _write(folder: Path, entry: _Entry, blobs: Generator[bytes]) -> None:
    path = folder / entry.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mode = 0o755 if entry.mode == _EXECUTABLE else 0o644
        with os.fdopen(os.open(path, flags, mode), "wb") as file:
            for chunk in blobs:
                file.write(chunk)
    except (FileExistsError, NotADirectoryError) as error:
        raise BuildFailed(f"source: {entry.path[:200]} is there twice") from error


def _link(folder: Path, path: str, target: bytes) -> None:
    try:
        text = target.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BuildFailed(f"source: the link {path[:200]} is not UTF-8") from error
    if not text or "\0" in text or text.startswith("/"):
        raise BuildFailed(f"source: the link {path[:200]} leads outside of the repository")
    place = folder / path
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Never through a link that was made before.
        if not place.parent.resolve().is_relative_to(folder.resolve()):
            raise BuildFailed(f"source: the link {path[:200]} leads outside of the repository")
        place.symlink_to(text)
    except (FileExistsError, NotADirectoryError) as error:
        raise BuildFailed(f"source: {path[:200]} is there twice") from error


def _check_links(folder: Path, paths: list[str]) -> None:
    root = folder.resolve()
    for path in paths:
        try:
            end = (folder / path).resolve(strict=True)
        except (OSError, RuntimeError):
            # It may dangle outside as well as inside: what is not there leads nowhere good.
            raise BuildFailed(
                f"source: the link {path[:200]} leads outside of the repository or nowhere"
            ) from None
        if not end.is_relative_to(root):
            raise BuildFailed(f"source: the link {path[:200]} leads outside of the repository")
        if end.is_dir() and (folder / path).parent.resolve().is_relative_to(end):
            raise BuildFailed(f"source: the link {path[:200]} leads to a folder that holds it")


def _split(stream: IO[bytes] | None) -> Generator[bytes]:
    assert stream is not None
    rest = b""
    while chunk := stream.read1(1 << 16):  # type: ignore[attr-defined]
        *lines, rest = (rest + chunk).split(b"\0")
        yield from lines
        if len(rest) > 1 << 16:
            raise BuildFailed("source: a file name of the repository is too long")


@contextmanager
def _process(argv: list[str], env: Mapping[str, str]) -> Generator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        argv,
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        with suppress(BrokenPipeError):
            process.__exit__(None, None, None)
