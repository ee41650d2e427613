"""The layers hold, and the check that says so can fail."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["vyvo_dagster", "assets", "ops", "sensors", "resources", "api", "runner_images"]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
    )


def test_imports_go_only_downward() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


def test_a_planted_violation_is_found(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    planted = tmp_path / "vyvo_dagster" / "domain" / "job.py"
    planted.write_text(planted.read_text() + "\nimport vyvo_dagster.store.tables\n")
    result = lint_imports(tmp_path)
    assert result.returncode != 0
    assert "vyvo_dagster.domain is not allowed to import vyvo_dagster.store" in result.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_the_required_packages_are_ours(package: str) -> None:
    file = import_module(package).__file__
    assert file is not None
    assert Path(file).is_relative_to(ROOT)


def test_no_file_grows_past_400_lines() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for package in [*PACKAGES, "tests", "benchmarks"]
        for path in (ROOT / package).rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert not long


def test_every_exported_name_exists() -> None:
    wrong = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if "templates" in path.parts or "migrations" in path.parts or "sdk" in path.parts:
                continue
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if name.endswith("__main__"):
                continue
            module = import_module(name)
            wrong += [
                f"{name}.{n}" for n in getattr(module, "__all__", ()) if not hasattr(module, n)
            ]
    assert not wrong


@pytest.mark.parametrize(
    "entry", ["vyvo_dagster.agent.main", "vyvo_dagster.cli", "vyvo_dagster.client"]
)
def test_the_agent_starts_without_the_servers_libraries(entry: str) -> None:
    banned = ["dagster", "fastapi", "sqlalchemy", "alembic", "celery"]
    code = (
        f"import sys, importlib; importlib.import_module({entry!r});"
        f"print([m for m in {banned!r} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        text=True,
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
