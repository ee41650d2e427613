"""Recipes: cog.yaml and requirements of strangers, and what is laid out for a build."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runner_images import SHARED_DIR, TEMPLATES_DIR
from vyvo_dagster.building.cog_config import read_cog_config
from vyvo_dagster.building.recipe import TemplateFiles, check_python, lay_out
from vyvo_dagster.building.requirements import plain_requirements
from vyvo_dagster.building.types import Recipe
from vyvo_dagster.errors import BuildFailed

COG = """\
build:
  gpu: true
  python_version: "3.11"
  system_packages: [libgl1, ffmpeg]
  python_requirements: requirements.txt
  run:
    - echo one > /src/made
    - command: echo 'two "$HOME"'
predict: "model/predict.py:Runner"
concurrency: {max: 4}
"""


@dataclass
class Lines:
    lines: list[str] = field(default_factory=list[str])

    def line(self, step: str, text: str) -> None:
        self.lines.append(f"{step}: {text}")


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    root = tmp_path / "repo"
    (root / "model").mkdir(parents=True)
    (root / "model" / "predict.py").write_text("class Runner: pass\n")
    (root / "requirements.txt").write_text("numpy>=2  # arrays\ncog==0.9\n")
    (root / "cog.yaml").write_text(COG)
    return root


def cog_template() -> TemplateFiles:
    return TemplateFiles(TEMPLATES_DIR / "cog", SHARED_DIR, requires_python=">=3.10", cog=True)


def test_a_cog_repository_is_laid_out_as_the_app(repo: Path, log: Lines, tmp_path: Path) -> None:
    for name in ("Dockerfile", "docker-bake.hcl", "requirements.lock", ".dockerignore"):
        (repo / name).write_text("FROM evil\n")
    (repo / "wheelhouse").mkdir()
    (repo / ".cog").mkdir()
    (repo / ".cog" / "openapi_schema.json").write_text("old")
    recipe = lay_out(tmp_path / "context", cog_template(), repo, log)
    folder = recipe.folder
    assert (recipe.predictor, recipe.gpu, recipe.foreign) == ("model/predict.py:Runner", True, True)
    assert recipe.requires_python == ">=3.10,==3.11.*"
    # What the repository brings under our names is in its own folder, and is not what is built.
    assert (folder / "Dockerfile").read_bytes() == (SHARED_DIR / "Dockerfile").read_bytes()
    assert (folder / "app" / "Dockerfile").read_text() == "FROM evil\n"
    assert not (folder / "requirements.lock").exists()
    assert not (folder / "app" / ".cog").exists()
    assert (folder / "image" / "system-packages.txt").read_text() == "libgl1\nffmpeg\n"
    assert (folder / "image" / "commands.sh").read_text() == (
        "echo one > /src/made\necho 'two \"$HOME\"'\n"
    )
    lines = (folder / "requirements.in").read_text().splitlines()
    assert lines[-2:] == ["cog>=0.23,<0.24", "numpy>=2"]
    assert (
        "source: requirements.txt, line 2: cog is left out; the platform's own is used" in log.lines
    )
    check_python(recipe, "3.11.9", "the image")
    with pytest.raises(BuildFailed, match=r"needs Python >=3\.10,==3\.11\.\*.*has 3\.12\.1"):
        check_python(recipe, "3.12.1", "the image")


def test_a_template_keeps_its_files_apart_from_the_source(log: Lines, tmp_path: Path) -> None:
    template, source = tmp_path / "template", tmp_path / "source"
    for folder in (template, source):
        folder.mkdir()
    (template / "predict.py").write_text("ours")
    (template / "requirements.in").write_text("cog\n")
    (source / "predict.py").write_text("theirs")
    (source / "requirements.txt").write_text("numpy\n")
    (source / "loop").symlink_to("predict.py")
    files = TemplateFiles(template, SHARED_DIR, source_requirements=["requirements.txt", "no.txt"])
    recipe = lay_out(tmp_path / "context", files, source, log)
    assert (recipe.folder / "app" / "predict.py").read_text() == "ours"
    assert (recipe.folder / "app" / "source" / "predict.py").read_text() == "theirs"
    assert (recipe.folder / "app" / "source" / "loop").is_symlink()
    assert (recipe.folder / "requirements.in").read_text() == "cog\nnumpy\n"
    assert not (recipe.folder / "app" / "requirements.in").exists()
    assert recipe.foreign
    assert not lay_out(tmp_path / "context", files, None, log).foreign


def test_an_image_of_cog_is_taken_as_it_is(log: Lines, tmp_path: Path) -> None:
    recipe = lay_out(tmp_path / "context", cog_template(), None, log)
    assert recipe.prebuilt
    instructions = (recipe.folder / "Dockerfile").read_text().splitlines()[-2:]
    assert instructions == ["ARG BASE_IMAGE", "FROM ${BASE_IMAGE}"]
    assert list((recipe.folder / "app").iterdir()) == []


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "aliases"),
        ("build: " + "[" * 5000, "nested deeper"),
        ("x" * 70_000, "larger than 65536"),
        ("build: {python_version: 3.10}\npredict: model/predict.py:Runner\n", "quoted"),
        ("build: !!python/object/apply:os.system ['touch /tmp/x']\n", "constructor"),
        ("- a\n- b\n", "not a mapping"),
        ("predict: /etc/passwd.py:Runner\n", "must look like"),
        ("predict: ../predict.py:Runner\n", "must look like"),
        ("predict: model/predict.py:Runner; touch /tmp/x\n", "must look like"),
        ("predict: model/none.py:Runner\n", "is not there"),
        ("predict: model/predict.py:Runner\nbuild: {system_packages: ['a; reboot']}\n", "package name"),
        ("predict: model/predict.py:Runner\nbuild: {system_packages: ['--help']}\n", "package name"),
        ("predict: model/predict.py:Runner\nbuild: {python_packages: ['x @ file:///etc']}\n", "by URL"),
        ("predict: model/predict.py:Runner\nbuild: {python_packages: ['-e .']}\n", "not taken"),
        ("predict: model/predict.py:Runner\nbuild: {python_requirements: ../../etc/passwd}\n", "no file"),
        ("predict: model/predict.py:Runner\nbuild: {python_requirements: 7}\n", "no file"),
        ("predict: model/predict.py:Runner\nbuild: {run: [{command: x, mounts: []}]}\n", "without mounts"),
        ("predict: model/predict.py:Runner\nbuild: {pre_install: [x]}\n", "into the base image"),
        ("predict: model/predict.py:Runner\nenvironment: [LD_PRELOAD=/x]\n", "give the build an env"),
        ("predict: model/predict.py:Runner\nbuild: {surprise: 1}\n", "'surprise' is unknown"),
        ("predict: model/predict.py:Runner\n1: 2\n", "'1' is unknown"),
        ("predict: [\n", "cog.yaml"),
        ("predict: \x00\n", "cog.yaml"),
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_hostile_cog_yaml_is_refused_at_once(
    repo: Path, log: Lines, text: str, said: str
) -> None:
    (repo / "cog.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(BuildFailed, match=said) as caught:
        read_cog_config(repo, log)
    assert caught.value.detail.startswith("source: ")
    assert len(caught.value.detail) < 500
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("torch==2.7.1", ["torch==2.7.1"]),
        ("  Pillow >= 11 ; python_version > '3.8'  # x", ['Pillow>=11; python_version > "3.8"']),
        ("uvicorn[standard]", ["uvicorn[standard]"]),
        ("numpy==2.0 --hash=sha256:00 \\", ["numpy==2.0"]),
        ("# only a comment", []),
        ("", []),
        ("--extra-index-url https://evil.example/simple", []),
        ("--index-url=https://evil.example", []),
        ("vyvo_runner==9", []),
    ],
)
def test_requirements_are_reduced_to_packages(log: Lines, line: str, taken: list[str]) -> None:
    assert plain_requirements([line], "r.txt", log) == taken
    assert "evil.example" not in "".join(taken)


@pytest.mark.parametrize(
    "line",
    [
        "-r other.txt", "-e git+https://x/y", "git+https://x/y.git", "./local", "/etc/passwd",
        "name @ https://x/y.whl", "name @ file:///etc/passwd", "-c constraints.txt", "a b c",
        "$(touch /tmp/x)", "numpy; touch /tmp/x", "--config-settings x",
    ],
)  # fmt: skip
def test_what_would_reach_beyond_the_index_is_refused(log: Lines, line: str) -> None:
    with pytest.raises(BuildFailed, match=r"^source: r\.txt, line 1: "):
        plain_requirements([line], "r.txt", log)


def test_a_recipe_without_a_word_on_python_takes_any(tmp_path: Path) -> None:
    check_python(Recipe(tmp_path), "3.13.0rc1", "x")
