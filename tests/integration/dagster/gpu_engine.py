"""A real Docker engine that takes requests for GPUs on a machine without any.

The engine offers GPUs where it finds NVIDIA's hook at its start, which it calls as each container
starts. Here the hook is a file that does nothing: what is asked for is then as on a GPU host, and the
container sees which GPUs it was given.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.dagster import engines

BRIDGE = "vyvo-test-gpu"
ADDRESS = "172.31.231.1/24"
HOOK = "nvidia-container-runtime-hook"


def possible() -> bool:
    """Whether this process may start engines."""
    return os.geteuid() == 0 and all(shutil.which(name) for name in ("dockerd", "ip"))


@contextmanager
def started(socket: Path, folder: Path) -> Iterator[None]:
    hook = folder / "bin" / HOOK
    hook.parent.mkdir(parents=True)
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o755)
    # A bridge of its own: with the default one it would take over the first engine's.
    # One that a killed run of the tests has left.
    subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True, timeout=10)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], check=True, timeout=10)
    engine = None
    try:
        subprocess.run(["ip", "addr", "add", ADDRESS, "dev", BRIDGE], check=True, timeout=10)
        argv = ["dockerd", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
        argv += [f"--bridge={BRIDGE}", "--data-root", str(folder / "data")]
        argv += ["--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")]
        env = {**os.environ, "PATH": f"{hook.parent}:{os.environ['PATH']}"}
        with (folder / "dockerd.log").open("wb") as log:
            engine = subprocess.Popen(
                [*argv, "-H", f"unix://{socket}"], env=env, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not engines.answers(f"unix://{socket}"):
            assert engine.poll() is None and time.monotonic() < deadline, (  # noqa: PT018
                (folder / "dockerd.log").read_text()[-2000:]
            )
            time.sleep(0.2)
        yield
    finally:
        if engine is not None:
            engine.send_signal(signal.SIGTERM)
            try:
                engine.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(engine.pid, signal.SIGKILL)
        # An engine that stops in order has taken it away.
        subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True, timeout=10)
        # The engine leaves it mounted, and a folder with a mount in it cannot be removed.
        mounted = folder / "exec" / "netns" / "default"
        subprocess.run(["umount", str(mounted)], check=False, capture_output=True, timeout=10)
        shutil.rmtree(folder / "data", ignore_errors=True)
