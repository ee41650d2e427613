"""`terraform`: a module makes a pool's machines, through the program's own command line.

The module takes `pool`, `size` and `node_names`, makes the machines with
`for_each = toset(var.node_names)`, and has each join under its name. A plan is judged before
anything is drained, and exactly that plan is applied.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from vyvo_dagster.errors import ScalingFailed
from vyvo_dagster.scaling.base import Task
from vyvo_dagster.scaling.command import run
from vyvo_dagster.scaling.terraform_plan import judge

__all__ = ["TerraformScaler"]

_LOCK: Final = "-lock-timeout=120s"
_COMMON: Final = ("-input=false", "-no-color")


class TerraformScaler:
    """Plans and applies modules.

    Args:
        program: path or name of `terraform`, or of a program with its command line.
        modules: folder of the modules; a pool names one folder in it.
        work: where variables, plans and what the program downloads are kept, a folder a pool.
        environment: of this process: cloud credentials and the like are handed on, our own
            settings are not.
        variables: secrets of ours for the modules, given as `TF_VAR_*`; kept out of logs and files.
        seconds: that one command may take.
    """

    def __init__(
        self, *, program: str, modules: Path, work: Path, environment: Mapping[str, str],
        variables: Mapping[str, str], seconds: float,
    ) -> None:  # fmt: skip
        self._program = program
        self._modules = modules.absolute()
        self._work = work.absolute()
        self._seconds = seconds
        self._secrets = [value for value in variables.values() if value]
        # Arguments and a workspace that the environment adds would change what a plan means.
        withheld = ("VYVO_", "DAGSTER_", "TF_CLI_ARGS", "TF_WORKSPACE", "TF_DATA_DIR", "TF_LOG")
        self._env = {
            name: value for name, value in environment.items() if not name.startswith(withheld)
        } | {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}
        self._env |= {f"TF_VAR_{name}": value for name, value in variables.items()}

    async def plan(self, task: Task) -> Mapping[str, Any]:
        """Make a plan, and judge it; its text goes to the log."""
        folder = self._folder(task)
        values = {
            **task.config.get("variables", {}), "pool": task.pool, "size": task.change.size,
            "node_names": list(task.change.names),
        }  # fmt: skip
        for old in folder.glob("*.tfplan"):
            old.unlink(missing_ok=True)  # of an operation that ended before it applied one
        _write(folder / "pool.tfvars.json", json.dumps(values, indent=2, sort_keys=True))
        await self._run(task, "init", *_COMMON, line=self._line(task))
        variables = f"-var-file={folder / 'pool.tfvars.json'}"
        out = f"-out={self._plan_file(task)}"
        await self._run(task, "plan", *_COMMON, _LOCK, variables, out, line=self._line(task))
        shown = await self._run(task, "show", "-json", "-no-color", str(self._plan_file(task)))
        judged = judge(shown, task)
        if task.dry_run:
            self._plan_file(task).unlink(missing_ok=True)
        return judged

    async def apply(self, task: Task) -> None:
        """Apply the plan that was judged; Terraform refuses it if the state has changed since."""
        plan = self._plan_file(task)
        try:
            await self._run(task, "apply", *_COMMON, _LOCK, str(plan), line=self._line(task))
        finally:
            plan.unlink(missing_ok=True)

    async def keep(self, pools: Mapping[str, tuple[Mapping[str, Any], Sequence[str]]]) -> None:
        """Nothing: drift is mended by the next operation."""

    async def _run(
        self, task: Task, *argv: str, line: Callable[[str], None] | None = None
    ) -> bytes:
        module = self._module(task)
        env = self._env | {"TF_DATA_DIR": str(self._folder(task) / "data")}
        return await run(
            [self._program, f"-chdir={module}", *argv], env=env, cwd=module, seconds=self._seconds,
            line=line,
        )  # fmt: skip

    def _line(self, task: Task) -> Callable[[str], None]:
        def say(line: str) -> None:
            for secret in self._secrets:
                line = line.replace(secret, "***")
            task.say(line)

        return say

    def _module(self, task: Task) -> Path:
        module = (self._modules / task.config["module"]).resolve()
        if module.parent != self._modules.resolve() or not module.is_dir():
            raise ScalingFailed(f"no folder {task.config['module']} in VYVO_TERRAFORM_MODULES")
        return module

    def _folder(self, task: Task) -> Path:
        folder = self._work / task.pool
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _plan_file(self, task: Task) -> Path:
        # Plans hold the values of all variables, so they are as secret as those.
        return self._folder(task) / f"{task.operation_id}.tfplan"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    partial.replace(path)
