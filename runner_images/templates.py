"""The runner templates of this repository: what a build names, and what it is made of."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vyvo_dagster.errors import BuildFailed, UnknownTemplate

__all__ = [
    "SDK_DIR",
    "SHARED_DIR",
    "TEMPLATES_DIR",
    "Accelerator",
    "Modality",
    "Resources",
    "SourceUse",
    "Template",
    "TemplateInvalid",
    "get_template",
    "load_templates",
    "read_template",
]

TEMPLATES_DIR = Path(__file__).resolve().parent / "templates"
SHARED_DIR = Path(__file__).resolve().parent / "shared"
SDK_DIR = Path(__file__).resolve().parent / "sdk"

Modality = Literal["image", "video", "audio", "text"]
Accelerator = Literal["none", "cuda"]
SourceUse = Literal["none", "optional", "required", "cog"]
"""How a template uses the build's `repo`: not at all, beside its own files, or (`cog`) in their place."""

SHARED_FILES: Final = ("Dockerfile", "docker-bake.hcl")
"""Taken from `shared/` where a template has none of its own."""

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NOT_CONTENT = frozenset({"__pycache__", ".cog", ".DS_Store"})


class TemplateInvalid(BuildFailed):
    """A template of the repository is malformed: a programming error, found by the tests."""

    code = "template_invalid"


class Resources(BaseModel):
    """What a runner of the template needs, in bytes, where a model version says nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    gpu_memory_bytes: int = Field(ge=0)
    memory_bytes: int = Field(gt=0)


class _Spec(BaseModel):
    """`template.yaml`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    modality: Modality
    description: str = Field(min_length=1, max_length=500)
    requires_python: str
    resources: Resources
    accelerator: Accelerator = "none"
    base_image: str | None = None
    needs_weights: bool = True
    source: SourceUse = "none"
    source_requirements: list[str] = Field(default_factory=list[str])
    inputs: dict[str, str] = Field(default_factory=dict[str, str])

    @field_validator("requires_python")
    @classmethod
    def _specifier(cls, value: str) -> str:
        try:
            SpecifierSet(value)
        except InvalidSpecifier as error:
            raise ValueError("not a PEP 440 specifier such as >=3.11,<3.14") from error
        return value


@dataclass(frozen=True)
class Template:
    """One folder of `templates/`."""

    name: str
    modality: Modality
    description: str
    resources: Resources
    requires_python: str
    """PEP 440 specifier, such as `>=3.11,<3.14`."""
    accelerator: Accelerator
    base_image: str | None
    """Base image where the build names none; None takes the platform's default."""
    needs_weights: bool
    source: SourceUse
    source_requirements: tuple[str, ...]
    """Requirement files of the build's repository that are locked too, those that exist."""
    inputs: dict[str, str]
    """Inputs of the predictor, with a sentence each."""
    path: Path
    hash: str
    """`sha256:<hex>` over the names and contents of its files, those it takes from `shared/` too."""


def load_templates(root: Path = TEMPLATES_DIR) -> dict[str, Template]:
    """All templates under `root` by name.

    Raises:
        TemplateInvalid: a folder whose template.yaml is missing or malformed.
    """
    return {folder.name: read_template(folder) for folder in _folders(root)}


def get_template(name: str, root: Path = TEMPLATES_DIR) -> Template:
    """The template of that name.

    Raises:
        UnknownTemplate: there is none; the detail names those there are.
    """
    names = [folder.name for folder in _folders(root)]
    # Membership, and never a path made of what a caller sent.
    if name not in names:
        raise UnknownTemplate(
            f"no template {name[:64]!r}; there are {', '.join(names)}", templates=names
        )
    return read_template(root / name)


def read_template(folder: Path) -> Template:
    """Read one template's folder.

    Raises:
        TemplateInvalid: its template.yaml is missing or malformed.
    """
    where = f"{folder.name}/template.yaml"
    try:
        loaded: Any = yaml.safe_load((folder / "template.yaml").read_text(encoding="utf-8"))
        spec = _Spec.model_validate(loaded)
    except ValidationError as error:
        raise TemplateInvalid(f"{where}: {_first(error)}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TemplateInvalid(f"{where}: {error!r}") from error
    if spec.name != folder.name or not _NAME.fullmatch(spec.name):
        raise TemplateInvalid(f"{where}: name must be the folder's, in a-z, 0-9 and -")
    return Template(
        name=spec.name, modality=spec.modality, description=spec.description,
        resources=spec.resources, requires_python=spec.requires_python,
        accelerator=spec.accelerator, base_image=spec.base_image,
        needs_weights=spec.needs_weights, source=spec.source,
        source_requirements=tuple(spec.source_requirements), inputs=spec.inputs,
        path=folder, hash=content_hash(folder),
    )  # fmt: skip


def content_hash(folder: Path) -> str:
    """`sha256:<hex>` over a template's files, the same on every machine.

    Names and contents count, and the shared files that the template uses.
    """
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not _NOT_CONTENT.intersection(path.relative_to(folder).parts)
    }
    for name in (*SHARED_FILES, "Dockerfile.prebuilt", "check-packages.sh"):
        files.setdefault(name, SHARED_DIR / name)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        # Lengths first, so that no two folders run together into the same bytes.
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return "sha256:" + digest.hexdigest()


def _folders(root: Path) -> list[Path]:
    return sorted(each for each in root.iterdir() if each.is_dir() and each.name[0] not in "._")


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"{'.'.join(str(part) for part in found['loc']) or 'it'}: {found['msg']}"
