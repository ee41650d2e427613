"""What a template must be like, asked of its files alone: nothing of it is imported or run."""

import ast
import re
from pathlib import Path

from runner_images.templates import SHARED_DIR, TemplateInvalid, read_template

__all__ = ["check_template"]

_ALWAYS = ("template.yaml", "requirements.in")


def check_template(path: Path) -> list[str]:
    """What is wrong with a template, a sentence each; an empty list when nothing is.

    Read from the source alone, so that a template whose libraries are not installed can be checked:
    `template.yaml` is well-formed, `predict.py` has a `Predictor` with a streaming `run` whose
    parameters are the `inputs` of template.yaml, outputs go through `vyvo_runner.upload`, and the
    image installs from a hash-locked wheelhouse as a user, not root. A template of source `cog` has
    no predictor of its own; a repository's may return files as it likes, and the node uploads them.
    """
    problems = [f"{name} is missing" for name in _ALWAYS if not (path / name).is_file()]
    if problems:
        return problems
    try:
        template = read_template(path)
    except TemplateInvalid as error:
        return [error.detail]
    own = path / "Dockerfile"
    dockerfile = own if own.is_file() else SHARED_DIR / "Dockerfile"
    problems += _check_dockerfile(dockerfile.read_text(encoding="utf-8"))
    if template.source == "cog":
        if (path / "predict.py").exists():
            problems.append("predict.py is the repository's where source is cog; remove it")
        return problems
    if template.source == "none" and template.source_requirements:
        problems.append("template.yaml: source_requirements without a source")
    if not (path / "predict.py").is_file():
        return [*problems, "predict.py is missing"]
    source = (path / "predict.py").read_text(encoding="utf-8")
    return problems + _check_predictor(source, set(template.inputs))


def _check_predictor(source: str, inputs: set[str]) -> list[str]:
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
    taken = {each.arg for each in [*run.args.args[1:], *run.args.kwonlyargs]}
    if taken != inputs:
        differing = ", ".join(sorted(taken ^ inputs))
        problems.append(f"template.yaml: inputs are not the parameters of run: {differing}")
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
