"""The runner templates of this repository: what a build names, and what it is made of."""

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from vyvo_dagster.errors import BuildFailed, UnknownTemplate

__all__ = [
    "SDK_DIR",
    "TEMPLATES_DIR",
    "Modality",
    "Resources",
    "Template",
    "TemplateInvalid",
    "check_template",
    "get_template",
    "load_templates",
    "read_template",
]

TEMPLATES_DIR = Path(__file__).resolve().parent / "templates"
SDK_DIR = Path(__file__).resolve().parent / "sdk"

Modality = Literal["image", "video", "audio", "text"]

REQUIRED_FILES = ("template.yaml", "requirements.in", "predict.py", "Dockerfile", "docker-bake.hcl")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NOT_CONTENT = frozenset({"__pycache__", ".cog", ".DS_Store"})


class TemplateInvalid(BuildFailed):
    """A template of the repository is malformed: a programming error, found by the tests."""

    code = "template_invalid"


@dataclass(frozen=True)
class Resources:
    """What a runner of the template needs, in bytes, where a model version says nothing else."""

    gpu_memory_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class Template:
    """One folder of `templates/`."""

    name: str
    modality: Modality
    description: str
    resources: Resources
    requires_python: str
    """PEP 440 specifier, such as `>=3.11,<3.14`."""
    base_image: str | None
    """Base image where the build names none; None takes the platform's default."""
    path: Path
    hash: str
    """`sha256:<hex>` over the names and contents of the folder's files."""


def load_templates(root: Path = TEMPLATES_DIR) -> dict[str, Template]:
    """All templates under `root` by name.

    Raises:
        TemplateInvalid: a folder whose template.yaml is missing or malformed.
    """
    return {
        folder.name: read_template(folder) for folder in sorted(root.iterdir()) if folder.is_dir()
    }


def get_template(name: str, root: Path = TEMPLATES_DIR) -> Template:
    """The template of that name.

    Raises:
        UnknownTemplate: there is none; the detail names those there are.
    """
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
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
    try:
        loaded: Any = yaml.safe_load((folder / "template.yaml").read_text(encoding="utf-8"))
        fields = cast("dict[str, Any]", loaded)
        resources = cast("dict[str, Any]", fields["resources"])
        template = Template(
            name=fields["name"],
            modality=fields["modality"],
            description=fields["description"],
            resources=Resources(**{name: int(value) for name, value in resources.items()}),
            requires_python=fields["requires_python"],
            base_image=fields.get("base_image"),
            path=folder,
            hash=content_hash(folder),
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise TemplateInvalid(f"{folder.name}/template.yaml: {error!r}") from error
    if template.name != folder.name or not _NAME.fullmatch(template.name):
        raise TemplateInvalid(
            f"{folder.name}/template.yaml: name must be the folder's, in a-z, 0-9 and -"
        )
    if template.modality not in get_args(Modality):
        raise TemplateInvalid(
            f"{folder.name}/template.yaml: unknown modality {template.modality!r}"
        )
    return template


def content_hash(folder: Path) -> str:
    """`sha256:<hex>` over the names and contents of a folder's files, the same on every machine."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda each: each.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        if path.is_file() and not _NOT_CONTENT.intersection(relative.parts):
            content = path.read_bytes()
            # Lengths first, so that no two folders run together into the same bytes.
            digest.update(f"{relative.as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return "sha256:" + digest.hexdigest()


def check_template(path: Path) -> list[str]:
    """What is wrong with a template, a sentence each; an empty list when nothing is.

    Read from the source alone, so that a template whose libraries are not installed can be checked:
    the files are there, `predict.py` has a `Predictor` with a streaming `run`, outputs go through
    `vyvo_runner.upload`, and the image installs from a hash-locked wheelhouse as a user, not root.
    """
    problems = [f"{name} is missing" for name in REQUIRED_FILES if not (path / name).is_file()]
    if problems:
        return problems
    problems += _check_predictor((path / "predict.py").read_text(encoding="utf-8"))
    problems += _check_dockerfile((path / "Dockerfile").read_text(encoding="utf-8"))
    try:
        read_template(path)
    except TemplateInvalid as error:
        problems.append(str(error))
    return problems


def _check_predictor(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        return [f"predict.py does not parse: {error}"]
    predictor = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Predictor"),
        None,
    )
    if predictor is None:
        return ["predict.py has no class Predictor"]
    methods = {
        node.name: node
        for node in predictor.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    run = methods.get("run") or methods.get("predict")
    if run is None:
        return ["Predictor has no method run"]
    problems: list[str] = []
    if "streaming" not in {_dotted(node).rpartition(".")[2] for node in run.decorator_list}:
        problems.append("Predictor.run is not @streaming, so that no progress can be followed")
    if not any(_uploads(node, _upload_names(tree)) for node in ast.walk(run)):
        problems.append(
            "Predictor.run never calls vyvo_runner.upload, so that outputs reach no bucket"
        )
    return problems


def _upload_names(tree: ast.Module) -> frozenset[str]:
    """What `vyvo_runner.upload` is called in a module, by its imports."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                f"{each.asname or each.name}.upload"
                for each in node.names
                if each.name == "vyvo_runner"
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "vyvo_runner":
            names |= {each.asname or each.name for each in node.names if each.name == "upload"}
    return frozenset(names)


def _uploads(node: ast.AST, names: frozenset[str]) -> bool:
    return isinstance(node, ast.Call) and _dotted(node.func) in names


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _check_dockerfile(text: str) -> list[str]:
    wanted = {
        "FROM ${BASE_IMAGE}": "does not build from ${BASE_IMAGE}",
        "--no-index": "may install from a network: pip has no --no-index",
        "--require-hashes": "installs unlocked packages: pip has no --require-hashes",
        "vyvo_runner.schema": "does not write the schema by vyvo_runner.schema",
        "COG_PREDICT_TYPE_STUB": "does not name the predictor in COG_PREDICT_TYPE_STUB",
    }
    problems = [f"Dockerfile {problem}" for needle, problem in wanted.items() if needle not in text]
    users = re.findall(r"^USER\s+(\S+)", text, flags=re.MULTILINE)
    if not users or users[-1].split(":")[0] in ("root", "0"):
        problems.append("Dockerfile ends as root; set USER")
    return problems
