"""Source of a git repository at one commit, fetched and written out without running any of it.

`git fetch` brings the objects of one commit into a bare repository, and this module writes the
files itself: no checkout, so no hook, filter, attribute or LFS smudge of the repository acts here.
What a tree may hold is bounded before it is written: files, links that stay inside, nothing else.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vyvo_dagster.building.addresses import Resolve, resolve
from vyvo_dagster.building.caches import tree_size
from vyvo_dagster.building.disk import full_disk_told
from vyvo_dagster.building.git_tree import write_tree
from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.types import BuildContext
from vyvo_dagster.building.validation import repo_is_listed, validate_ref, validate_repo
from vyvo_dagster.domain.address import is_public_address
from vyvo_dagster.errors import BuildFailed, InvalidInput

__all__ = ["DEFAULT_SOURCE_HOSTS", "Source", "SourceLimits", "fetch_source"]

DEFAULT_SOURCE_HOSTS: Final = (
    "github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "huggingface.co",
)  # fmt: skip
_STEP: Final = "source"
_HEAD: Final = "HEAD"


@dataclass(frozen=True, slots=True)
class SourceLimits:
    """What a repository may cost.

    Args:
        hosts: as validate_repo takes them.
        max_bytes: of the fetched objects, and again of the files.
        max_files: files and links.
        seconds: for fetching.
        ca: PEM certificates to trust instead of the system's, for hosts inside.
        resolver: host and port to addresses.
    """

    hosts: Collection[str] = DEFAULT_SOURCE_HOSTS
    max_bytes: int = 1 << 30
    max_files: int = 100_000
    seconds: float = 600.0
    ca: Path | None = None
    resolver: Resolve = field(default=resolve)


@dataclass(frozen=True, slots=True)
class Source:
    """A repository's files at `path`; `commit` is the full id that the ref meant."""

    path: Path
    repo: str
    ref: str
    commit: str


def fetch_source(
    repo: str, ref: str | None, folder: Path, limits: SourceLimits, context: BuildContext
) -> Source:
    """Fetch one commit of a repository and write its files to `folder`, which is made anew.

    Args:
        repo: https URL.
        ref: branch, tag or full commit id; None for the repository's default branch.
        folder: gets the files; beside it the objects lie while this runs.
        limits: see there.
        context: log, cancel.

    Raises:
        InvalidInput: the URL or the ref is not allowed.
        BuildFailed: it cannot be fetched, is too large, or holds what is not taken (submodules,
            LFS pointers, links that lead outside).
    """
    validate_repo(repo, limits.hosts)
    wanted = validate_ref(ref) if ref else _HEAD
    bare = folder.with_name(f".{folder.name}.git")
    for left in (folder, bare):
        shutil.rmtree(left, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        commit = _fetch(repo, wanted, bare, limits, context)
        context.log.line(_STEP, f"{repo} at {wanted} is commit {commit}")
        env = _environment(folder.parent, limits)
        with full_disk_told(_STEP, folder.parent):
            count, size = write_tree(
                bare, commit, folder, env,
                max_files=limits.max_files, max_bytes=limits.max_bytes, context=context,
            )  # fmt: skip
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(bare, ignore_errors=True)
    context.log.line(_STEP, f"{count} files, {size / 1e6:.1f} MB")
    return Source(folder, repo, wanted, commit)


def _fetch(repo: str, ref: str, bare: Path, limits: SourceLimits, context: BuildContext) -> str:
    env = _environment(bare.parent, limits)
    context.log.line(_STEP, f"fetching {repo} at {ref}")

    def git(*argv: str, watch: Callable[[], None] | None = None) -> str:
        command = ["git", *_options(repo, limits), *argv]
        return run_logged(command, step=_STEP, log=context.log, cancel=context.cancel,
                          timeout=limits.seconds, env=env, watch=watch)  # fmt: skip

    def watch() -> None:
        # Git renames its files as it goes.
        with suppress(FileNotFoundError):
            if tree_size(bare) > limits.max_bytes:
                raise BuildFailed(f"source: {repo} is larger than {limits.max_bytes} bytes")

    git("init", "--quiet", "--bare", "--template=", str(bare))
    try:
        git("--git-dir", str(bare), "fetch", "--quiet", "--depth=1", "--no-tags", "--no-auto-gc",
            "--no-recurse-submodules", "--", repo, ref, watch=watch)  # fmt: skip
    except BuildFailed as error:
        raise _explained(error, repo, ref) from error
    watch()
    context.check_canceled()
    commit = _commit(bare, env)
    if len(ref) == 40 and set(ref) <= set("0123456789abcdef") and commit != ref:
        raise BuildFailed(f"source: asked for commit {ref}, got {commit}")
    return commit


def _commit(bare: Path, env: Mapping[str, str]) -> str:
    argv = ["git", "--git-dir", str(bare), "rev-parse", "--verify", "FETCH_HEAD^{commit}"]
    done = subprocess.run(
        argv, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise BuildFailed("source: the ref is no commit")
    return done.stdout.strip()


def _options(repo: str, limits: SourceLimits) -> list[str]:
    options = [
        # Only https, also where the repository's server would send us elsewhere.
        "protocol.allow=never",
        "protocol.https.allow=always",
        "http.followRedirects=false",
        "core.hooksPath=/dev/null",
        "credential.helper=",
        "fetch.writeCommitGraph=false",
        f"http.lowSpeedTime={min(60, int(limits.seconds))}",
        "http.lowSpeedLimit=1",
    ]
    if limits.ca is not None:
        options.append(f"http.sslCAInfo={limits.ca}")
    if not repo_is_listed(repo, limits.hosts):
        options += _pinned(repo, limits)
    return [part for option in options for part in ("-c", option)]


def _pinned(repo: str, limits: SourceLimits) -> list[str]:
    """The host's addresses, all public, so that git asks no resolver a second time."""
    parts = urlsplit(repo)
    host, port = parts.hostname or "", parts.port or 443
    addresses = list(limits.resolver(host, port))
    if not addresses or not all(map(is_public_address, addresses)):
        raise InvalidInput(f"repo: {host} resolves to {', '.join(addresses) or 'nothing'}, "
                           "which is not a public address")  # fmt: skip
    return [f"http.curloptResolve={host}:{port}:{','.join(addresses)}"]


def _environment(home: Path, limits: SourceLimits) -> dict[str, str]:
    """Git without this host's configuration, helpers and prompts."""
    return {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "LC_ALL": "C",
        **({} if limits.ca is None else {"GIT_SSL_CAINFO": str(limits.ca)}),
    }


def _explained(error: BuildFailed, repo: str, ref: str) -> BuildFailed:
    """Git's own words, with what to do where that is known."""
    said = error.detail
    hints = {
        "couldn't find remote ref": f"{repo} has no ref {ref}",
        "could not read Username": f"{repo} does not exist, or asks for a login",
        "terminal prompts disabled": f"{repo} does not exist, or asks for a login",
        "unable to update url base from redirection": f"{repo} redirects; name where it is now",
        "returned error: 30": f"{repo} redirects; name where it is now",
    }
    for words, meaning in hints.items():
        if words in said:
            return BuildFailed(f"source: {meaning}")
    return error
