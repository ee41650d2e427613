"""Dependencies locked with hashes and fetched as wheels, before an image is built without network.

Three caches under `<data_dir>/wheelhouses`, each entry made once, whole, and shared by all builds:

    sdk/<hash of the source>/vyvo_runner-*.whl
    locks/<hash of what was asked>/requirements.lock
    <sha256 of the lock>/           the wheels of that lock, and the lock

A build whose template, SDK, Python and platform were seen before touches no network at all.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vyvo_dagster.building.caches import NOT_SOURCE, cached_folder, sha256_of, tree_hash
from vyvo_dagster.building.process import run_logged
from vyvo_dagster.building.types import BuildContext
from vyvo_dagster.errors import BuildFailed

__all__ = ["LOCK_NAME", "Target", "Wheelhouse", "host_target", "prepare_wheelhouse", "uv_command"]

LOCK_NAME: Final = "requirements.lock"
_REQUIREMENTS: Final = "requirements.in"
_SDK: Final = "vyvo-runner"
# Raised when what a lock contains changes for equal inputs, so that old locks are not reused.
_FORMAT: Final = 1
# What uv resolves for: manylinux platforms of these glibc minors, on these machines.
_GLIBC_MINORS: Final = (17, 28, *range(31, 41))
_MACHINES: Final = ("x86_64", "aarch64")
_PIP_NOISE: Final = ("Saved ", "Looking in ", "WARNING: Location ", "Successfully downloaded",
                     "Downloading ", "Using cached ", "File was already downloaded")  # fmt: skip
_INDEX_OPTIONS: Final = ("--index-url", "--extra-index-url", "--find-links", "-i ", "-f ")


@dataclass(frozen=True, slots=True)
class Target:
    """The interpreter that the wheels are for.

    Args:
        python: `3.11`, major and minor.
        platform: a uv platform such as `x86_64-manylinux_2_28`; pip's is derived from it.
    """

    python: str
    platform: str

    @classmethod
    def of(cls, python: str, machine: str, glibc: str) -> "Target":
        """The target of an interpreter by what it says of itself, such as ("3.11", "x86_64", "2.36").

        Raises:
            BuildFailed: no glibc, or one older than any wheel of today is made for.
        """
        major, _, minor = glibc.partition(".")
        fitting = [m for m in _GLIBC_MINORS if minor.isdigit() and m <= int(minor)]
        if major != "2" or not fitting or machine not in _MACHINES:
            raise BuildFailed(
                f"runners need Linux on {' or '.join(_MACHINES)} with glibc 2.17 or later; "
                f"found {machine} with glibc {glibc or 'none'}"
            )
        return cls(python, f"{machine}-manylinux_2_{fitting[-1]}")

    @property
    def pip_platforms(self) -> list[str]:
        """What pip accepts on this platform, newest first: it does not widen a tag itself."""
        machine, _, libc = self.platform.partition("-")
        newest = int(libc.removeprefix("manylinux_2_"))
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
        # The legacy names of 2.17, 2.12 and 2.5, and wheels that name no libc.
        legacy = [f"manylinux{name}_{machine}" for name in ("2014", "2010", "1")]
        return [*tags, *legacy, f"linux_{machine}"]


@dataclass(frozen=True, slots=True)
class Wheelhouse:
    """A folder of wheels and the lock that names each by its hash. `lock_sha256` is hex."""

    path: Path
    lock: Path
    lock_sha256: str


def uv_command() -> str:
    """Path of uv: the one installed with this package, else the one on PATH."""
    try:
        # Absent where uv is a system package.
        from uv import find_uv_bin

        return str(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise BuildFailed("uv is not installed on the build host: pip install uv")
    return found


def prepare_wheelhouse(
    folder: Path, sdk_dir: Path, target: Target, context: BuildContext
) -> Wheelhouse:
    """Lock a recipe's requirements plus the SDK, and have every wheel of the lock on disk.

    Equal requirements, SDK, Python and platform have one lock for ever: it is resolved once and
    kept by `context.locks`.

    Args:
        folder: holds `requirements.in`.
        sdk_dir: source of `vyvo_runner`, built into a wheel.
        target: interpreter and platform of the image.
        context: caches, log, cancel, timeout.

    Raises:
        BuildFailed: nothing satisfies the requirements, no wheel exists for the target, or a
            download does not match its hash; the detail quotes the resolver.
    """
    root = context.data_dir.resolve() / "wheelhouses"
    requirements = folder / _REQUIREMENTS
    if not requirements.is_file():
        raise BuildFailed(f"lock: the template has no {_REQUIREMENTS}")
    sdk_wheel = _sdk_wheel(root / "sdk", sdk_dir, context)
    lock = _lock(root / "locks", requirements, sdk_wheel, target, context)
    # A lock names packages, not where they are: the template's own indexes hold for the fetch too.
    options = [line.strip() for line in requirements.read_text().splitlines()]
    indexes = [line for line in options if line.startswith(_INDEX_OPTIONS)]
    return _fetch(root, lock, sdk_wheel, target, context, indexes=indexes)


def _sdk_wheel(cache: Path, sdk_dir: Path, context: BuildContext) -> Path:
    if not (sdk_dir / "pyproject.toml").is_file():
        raise BuildFailed(f"sdk: no Python package at {sdk_dir}")

    def make(out: Path) -> None:
        context.log.line("sdk", "building the vyvo_runner wheel")
        # Built from a copy, so that two builds at once and a read-only install are no trouble.
        source = out / ".source"
        shutil.copytree(sdk_dir, source, ignore=shutil.ignore_patterns(*NOT_SOURCE))
        argv = [uv_command(), "build", "--wheel", "--no-progress", "--color=never", "--no-build-logs",
                "--out-dir", str(out), str(source)]  # fmt: skip
        _run(argv, "sdk", context)
        shutil.rmtree(source)
        (out / ".gitignore").unlink(missing_ok=True)

    folder = cached_folder(cache / tree_hash(sdk_dir), make, context)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise BuildFailed(f"sdk: expected one wheel in {folder}, found {len(wheels)}")
    return wheels[0]


def _lock(
    cache: Path, requirements: Path, sdk_wheel: Path, target: Target, context: BuildContext
) -> Path:
    asked = json.dumps([_FORMAT, requirements.read_text(), sha256_of(sdk_wheel), target.python,
                        target.platform])  # fmt: skip

    key = hashlib.sha256(asked.encode()).hexdigest()

    def make(out: Path) -> None:
        kept = context.locks.get(key) if context.locks else None
        if kept is not None:
            context.log.line("lock", "these requirements were locked before")
            (out / LOCK_NAME).write_bytes(kept)
            return
        context.log.line("lock", f"resolving for Python {target.python} on {target.platform}")
        version = sdk_wheel.name.split("-")[1]
        source = out / _REQUIREMENTS
        source.write_text(f"{requirements.read_text().rstrip()}\n{_SDK}=={version}\n")
        argv = [uv_command(), "pip", "compile", "--quiet", "--color=never", "--generate-hashes",
                "--no-header", "--no-annotate", "--no-emit-find-links", "--only-binary", ":all:",
                "--python-version", target.python, "--python-platform", target.platform,
                "--find-links", str(sdk_wheel.parent), "--output-file", str(out / LOCK_NAME),
                str(source)]  # fmt: skip
        _run(argv, "lock", context)
        if context.locks is not None:
            lock = out / LOCK_NAME
            lock.write_bytes(context.locks.keep(key, lock.read_bytes()))

    lock = cached_folder(cache / key, make, context) / LOCK_NAME
    pinned = sum(1 for line in lock.read_text().splitlines() if line[:1].isalnum())
    context.log.line("lock", f"{pinned} packages locked, sha256:{sha256_of(lock)}")
    return lock


def _fetch(
    root: Path,
    lock: Path,
    sdk_wheel: Path,
    target: Target,
    context: BuildContext,
    *,
    indexes: list[str],
) -> Wheelhouse:
    digest = sha256_of(lock)

    def make(out: Path) -> None:
        if importlib.util.find_spec("pip") is None:
            raise BuildFailed(
                "wheels: pip is not installed beside vyvo-dagster: uv pip install pip"
            )
        context.log.line("wheels", "fetching the locked wheels")
        asked = out / "requirements.in"
        asked.write_text("\n".join([*indexes, lock.read_text()]))
        argv = [sys.executable, "-m", "pip", "--no-input", "download", "--no-deps", "--require-hashes",
                "--only-binary=:all:", "--progress-bar=off", "--dest", str(out),
                "--python-version", target.python, "--implementation", "cp",
                "--find-links", str(sdk_wheel.parent), "-r", str(asked)]  # fmt: skip
        for platform in target.pip_platforms:
            argv += ["--platform", platform]
        _run(argv, "wheels", context, _pip_line)
        asked.unlink()
        shutil.copyfile(lock, out / LOCK_NAME)

    folder = cached_folder(root / digest, make, context)
    wheels = list(folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels)
    context.log.line("wheels", f"{len(wheels)} wheels, {size / 1e6:.1f} MB")
    return Wheelhouse(folder, folder / LOCK_NAME, digest)


def _run(
    argv: list[str],
    step: str,
    context: BuildContext,
    on_line: Callable[[str], tuple[str, str] | None] | None = None,
) -> None:
    # The host's constraints and index settings stay in force; its active venv does not.
    env = {
        "VIRTUAL_ENV": "",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        # The host's own trust store, where a team's certificate authority is.
        "UV_SYSTEM_CERTS": os.environ.get("UV_SYSTEM_CERTS", "1"),
    }
    run_logged(
        argv,
        step=step,
        log=context.log,
        cancel=context.cancel,
        timeout=context.timeout,
        env=env,
        on_line=on_line,
    )


def _pip_line(line: str) -> tuple[str, str] | None:
    """What of pip's output a reader of the log wants: each package once, and whatever went wrong."""
    text = line.strip()
    if text.startswith(_PIP_NOISE):
        return None
    if text.startswith(("Collecting ", "Processing ")):
        text = text.split(" ", 1)[1].partition(" (from ")[0].rsplit("/", 1)[-1]
    return "wheels", text


def host_target() -> Target:
    """The interpreter that runs this, for environments on this host."""
    machine = os.uname().machine
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    return Target.of(f"{sys.version_info.major}.{sys.version_info.minor}", machine, libc)
