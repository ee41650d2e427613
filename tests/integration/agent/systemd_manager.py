"""A real systemd, as the manager of a user, in a mount and a cgroup namespace of its own.

It needs to be root, unshare(1) and a cgroup2 file system; nothing of it reaches the host's own
/run or cgroups but one cgroup, which is removed with it.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SYSTEMD = next((p for p in map(Path, ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")) if p.exists()), None)  # fmt: skip
_NAMESPACE = """
set -e
mkdir -p "$1/host-run" && mount --rbind /run "$1/host-run"
mount -t tmpfs none /run && mkdir -p /run/systemd/system
if [ -S "$1/host-run/docker.sock" ]; then
  touch /run/docker.sock && mount --bind "$1/host-run/docker.sock" /run/docker.sock
fi
mount -t tmpfs none /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup
"""


def _cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def runs_here() -> bool:
    """Whether such a systemd can run on this machine."""
    programs = all(map(shutil.which, ("unshare", "systemctl", "mount")))
    if _SYSTEMD is None or not programs or os.geteuid() != 0 or _cgroup2() is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["unshare", "-m", "-C", "sh", "-c", _NAMESPACE, "sh", folder]
        done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    return done.returncode == 0


@dataclass(frozen=True)
class Manager:
    """`env` is what systemctl needs to reach it; units are read from `units`."""

    env: dict[str, str]
    units: Path

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            ["systemctl", "--user", *arguments], env={**os.environ, **self.env},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout.strip()


@contextmanager
def manager() -> Iterator[Manager]:
    """One that answers."""
    folder = Path(tempfile.mkdtemp(prefix="vyvo-sd-"))  # Short: it holds Unix sockets.
    root = _cgroup2()
    assert root is not None
    cgroup = root / folder.name
    cgroup.mkdir()
    runtime, units = folder / "run", folder / "config/systemd/user"
    runtime.mkdir(mode=0o700)
    units.mkdir(parents=True)
    (units / "default.target").write_text("[Unit]\nDescription=Nothing\n")
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder),
        "XDG_RUNTIME_DIR": str(runtime), "XDG_CONFIG_HOME": str(folder / "config"),
    }  # fmt: skip
    # Into the cgroup first, which becomes the root of the namespace's.
    script = (
        'echo 0 > "$2/cgroup.procs"; exec unshare -m -C sh -c "$3"\'exec "$2" --user\' sh "$1" "$4"'
    )
    arguments = ["sh", "-c", script, "sh", str(folder), str(cgroup), _NAMESPACE, str(_SYSTEMD)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            arguments, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    made = Manager({"XDG_RUNTIME_DIR": str(runtime)}, units)
    try:
        deadline = time.monotonic() + 60
        while made.systemctl("is-active", "default.target", check=False) != "active":
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "systemd does not answer"
            time.sleep(0.1)
        yield made
    finally:
        _end(process, cgroup)
        shutil.rmtree(folder, ignore_errors=True)


def _end(process: subprocess.Popen[bytes], cgroup: Path) -> None:
    deadline = time.monotonic() + 20
    while pids := [p for file in cgroup.rglob("cgroup.procs") for p in file.read_text().split()]:
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.wait(20)
    for folder in sorted(cgroup.rglob("*/"), key=lambda p: len(p.parts), reverse=True):
        if folder.is_dir():
            folder.rmdir()
    cgroup.rmdir()
