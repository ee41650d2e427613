"""`vyvo templates`: what templates there are, whether they are well made, and starting one."""

import re
import shutil
from pathlib import Path

import click

from runner_images import TEMPLATES_DIR, check_template, load_templates
from vyvo_dagster.cli.output import plain, table
from vyvo_dagster.errors import VyvoError

__all__ = ["templates"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_STARTER = "digits-diffusion"
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group(
    epilog="\b\nExamples:\n  vyvo templates list\n  vyvo templates new my-model\n"
    "  vyvo templates check runner_images/templates/my-model",
)
def templates() -> None:
    """Runner templates: list, check and start them."""


@templates.command("list")
def list_templates() -> None:
    """List the templates that builds may name."""
    try:
        found = load_templates()
    except VyvoError as error:
        raise click.ClickException(plain(error.detail)) from error
    rows = [(t.name, t.modality, t.accelerator, t.source, t.description) for t in found.values()]
    click.echo(table(("name", "modality", "accelerator", "repo", "description"), rows))


@templates.command()
@click.argument("folders", nargs=-1, type=_FOLDER)
def check(folders: tuple[Path, ...]) -> None:
    """Say what is wrong with the templates in FOLDERS, or with all there are; exit 1 if anything is."""
    chosen = folders or tuple(
        each
        for each in sorted(TEMPLATES_DIR.iterdir())
        if each.is_dir() and each.name[0] not in "._"
    )
    bad = 0
    for folder in chosen:
        problems = check_template(folder.resolve())
        bad += bool(problems)
        for problem in problems:
            click.echo(f"{plain(folder.name)}: {plain(problem)}", err=True)
    click.echo(f"{len(chosen) - bad} of {len(chosen)} templates are well made")
    if bad:
        raise SystemExit(1)


@templates.command()
@click.argument("name")
@click.option(
    "--in",
    "root",
    type=_FOLDER,
    default=TEMPLATES_DIR,
    help="Folder to make it in.  [default: the templates']",
)
def new(name: str, root: Path) -> None:
    """Start a template NAME: a small one that builds and runs, to be changed."""
    if not _NAME.fullmatch(name):
        raise click.ClickException("a template's name is 1 to 63 of a-z, 0-9 and -")
    folder = root / name
    try:
        shutil.copytree(
            TEMPLATES_DIR / _STARTER, folder, ignore=shutil.ignore_patterns("__pycache__")
        )
        spec = folder / "template.yaml"
        spec.write_text(spec.read_text().replace(f"name: {_STARTER}", f"name: {name}", 1))
    except FileExistsError:
        raise click.ClickException(f"{folder} is there already") from None
    except OSError as error:
        raise click.ClickException(f"{folder}: {error.strerror}") from error
    click.echo(
        f"{folder}: change predict.py, requirements.in and template.yaml, then vyvo templates check"
    )
