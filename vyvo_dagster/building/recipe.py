"""A build context laid out from a template, the files that templates share, and a repository.

    Dockerfile, docker-bake.hcl   the template's own, else the shared ones
    requirements.in               the template's, and the repository's in plain lines
    image/system-packages.txt     what the base image must have, a Debian package a line
    image/check-packages.sh       looks whether it has
    image/commands.sh             commands of the repository, run inside the image build
    app/                          becomes /src: the template's files with the repository in
                                  `source/`, or (`cog`) the repository's files alone

All that a repository brings is under `app/`, so that no name in it can stand for one of ours.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.specifiers import SpecifierSet

from vyvo_dagster.building.caches import NOT_SOURCE
from vyvo_dagster.building.cog_config import read_cog_config
from vyvo_dagster.building.disk import full_disk_told
from vyvo_dagster.building.requirements import plain_requirements
from vyvo_dagster.building.types import Log, Recipe
from vyvo_dagster.errors import BuildFailed

__all__ = [
    "APP", "BAKE", "COMMANDS", "DOCKERFILE", "IMAGE", "REQUIREMENTS", "SYSTEM_PACKAGES", "TemplateFiles",
    "check_python", "lay_out",
]  # fmt: skip

APP: Final = "app"
IMAGE: Final = "image"
BAKE: Final = "docker-bake.hcl"
DOCKERFILE: Final = "Dockerfile"
REQUIREMENTS: Final = "requirements.in"
SYSTEM_PACKAGES: Final = "system-packages.txt"
COMMANDS: Final = "commands.sh"

_PREBUILT: Final = "Dockerfile.prebuilt"
_CHECK: Final = "check-packages.sh"
# Of a template's folder, what is no part of its app.
_NOT_APP: Final = (DOCKERFILE, ".dockerignore", BAKE, REQUIREMENTS)
_REQUIREMENTS_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class TemplateFiles:
    """What of a template a recipe needs; see runner_images.Template."""

    path: Path
    shared: Path
    requires_python: str = ""
    gpu: bool = False
    cog: bool = False
    """The repository takes the place of the template's own files."""
    source_requirements: Sequence[str] = ()


def lay_out(folder: Path, template: TemplateFiles, source: Path | None, log: Log) -> Recipe:
    """Lay out a build context in `folder`, which is made anew.

    Args:
        folder: of the context.
        template: its folder, and the folder of shared files.
        source: files of the build's repository, as `fetch_source` leaves them.
        log: told what of the repository is left out.

    Raises:
        BuildFailed: the repository's cog.yaml or requirements cannot be used.
    """
    with full_disk_told("source", folder):
        return _laid_out(folder, template, source, log)


def _laid_out(folder: Path, template: TemplateFiles, source: Path | None, log: Log) -> Recipe:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / IMAGE).mkdir(parents=True)
    _copy_own_or_shared(template, folder, BAKE)
    (folder / ".dockerignore").write_text("**/__pycache__\n")
    if template.cog and source is None:
        (folder / APP).mkdir()
        shutil.copyfile(template.shared / _PREBUILT, folder / DOCKERFILE)
        return Recipe(folder, gpu=True, prebuilt=True)
    _copy_own_or_shared(template, folder, DOCKERFILE)
    own = (template.path / REQUIREMENTS).read_text(encoding="utf-8")
    if template.cog and source is not None:
        return _of_cog(folder, template, source, own, log)
    ignored = shutil.ignore_patterns(*NOT_SOURCE, *_NOT_APP)
    shutil.copytree(template.path, folder / APP, ignore=ignored)
    added: list[str] = []
    if source is not None:
        shutil.copytree(source, folder / APP / "source", symlinks=True)
        for name in template.source_requirements:
            added += _source_requirements(source, name, log)
    _write_image_files(folder, template, own, added)
    return Recipe(
        folder,
        requires_python=template.requires_python,
        gpu=template.gpu,
        foreign=source is not None,
    )


def check_python(recipe: Recipe, python: str, what: str) -> None:
    """BuildFailed where the recipe does not go with Python `python` (such as 3.11.2) of `what`."""
    if python not in SpecifierSet(recipe.requires_python, prereleases=True):
        raise BuildFailed(
            f"base: the runner needs Python {recipe.requires_python} and {what} has {python}; "
            "name a base_image that has it"
        )


def _of_cog(folder: Path, template: TemplateFiles, source: Path, own: str, log: Log) -> Recipe:
    config = read_cog_config(source, log)
    shutil.copytree(source, folder / APP, symlinks=True)
    # The build itself writes there.
    schema = folder / APP / ".cog"
    if schema.is_symlink() or schema.is_file():
        schema.unlink()
    shutil.rmtree(schema, ignore_errors=True)
    added, packages = config.requirements, config.system_packages
    _write_image_files(folder, template, own, added, packages, config.commands)
    python = [template.requires_python, f"=={config.python}.*" if config.python else ""]
    return Recipe(
        folder,
        predictor=config.predictor,
        requires_python=",".join(filter(None, python)),
        gpu=config.gpu or template.gpu,
        foreign=True,
    )


def _write_image_files(
    folder: Path,
    template: TemplateFiles,
    own: str,
    added: Sequence[str],
    packages: Sequence[str] = (),
    commands: Sequence[str] = (),
) -> None:
    lines = [own.rstrip(), *added]
    (folder / REQUIREMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    image = folder / IMAGE
    shutil.copyfile(template.shared / _CHECK, image / _CHECK)
    (image / SYSTEM_PACKAGES).write_text("".join(f"{name}\n" for name in packages))
    (image / COMMANDS).write_text("".join(f"{text}\n" for text in commands), encoding="utf-8")


def _source_requirements(source: Path, name: str, log: Log) -> list[str]:
    path = source / name
    if not path.is_file():
        return []
    if path.stat().st_size > _REQUIREMENTS_BYTES:
        raise BuildFailed(f"source: {name} is larger than {_REQUIREMENTS_BYTES} bytes")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return plain_requirements(lines, name, log)


def _copy_own_or_shared(template: TemplateFiles, folder: Path, name: str) -> None:
    own = template.path / name
    shutil.copyfile(own if own.is_file() else template.shared / name, folder / name)
