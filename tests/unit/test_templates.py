"""The templates of this repository, from their files alone."""

import shutil
from pathlib import Path

import pytest

from runner_images import (
    SHARED_DIR,
    TEMPLATES_DIR,
    TemplateInvalid,
    check_template,
    get_template,
    load_templates,
)
from runner_images.templates import content_hash, read_template
from vyvo_dagster.errors import UnknownTemplate

NAMES = sorted(load_templates())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the small template with a Dockerfile of its own, to be spoiled."""
    folder = Path(
        shutil.copytree(TEMPLATES_DIR / "digits-diffusion", tmp_path / "digits-diffusion")
    )
    shutil.copy(SHARED_DIR / "Dockerfile", folder)
    return folder


def test_the_templates_are_there() -> None:
    assert NAMES == [
        "audio", "cog", "diffusion", "digit-reader", "digits-diffusion", "llm", "video",
    ]  # fmt: skip
    assert get_template("digits-diffusion").modality == "image"
    assert get_template("diffusion").resources.gpu_memory_bytes > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_template_passes_its_own_check(name: str) -> None:
    assert check_template(TEMPLATES_DIR / name) == []


def test_the_shared_files_are_used_and_not_copied() -> None:
    for name in NAMES:
        assert not (TEMPLATES_DIR / name / "Dockerfile").exists()
        assert not (TEMPLATES_DIR / name / "docker-bake.hcl").exists()


@pytest.mark.parametrize(
    "name", ["", "../sdk", "digits-diffusion/", "Diffusion", "a\0b", "x" * 5000, "."]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        UnknownTemplate, match="there are audio, cog, diffusion, digit-reader, digits-diffusion"
    ) as caught:
        get_template(name)
    assert len(caught.value.detail) < 200


def test_the_hash_changes_with_content_and_names_and_nothing_else(copy: Path) -> None:
    (copy / "Dockerfile").unlink()
    original = content_hash(copy)
    assert original == get_template("digits-diffusion").hash
    (copy / "__pycache__").mkdir(exist_ok=True)
    (copy / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert content_hash(copy) == original
    (copy / "requirements.in").rename(copy / "requirements.txt")
    renamed = content_hash(copy)
    (copy / "predict.py").write_text((copy / "predict.py").read_text() + "\n")
    changed = content_hash(copy)
    (copy / "Dockerfile").write_text("FROM ${BASE_IMAGE}\n")
    assert len({original, renamed, changed, content_hash(copy)}) == 4


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("predict.py", "vyvo_runner.upload", "print", "never calls vyvo_runner.upload"),
        ("predict.py", "    @streaming\n", "", "not @streaming"),
        ("predict.py", "class Predictor", "class Other", "no class Predictor"),
        ("predict.py", "def run(", "def go(", "no method run"),
        ("predict.py", "def run(", "def run((", "does not parse"),
        ("Dockerfile", "--no-index", "", "no --no-index"),
        ("Dockerfile", "--require-hashes", "", "no --require-hashes"),
        ("Dockerfile", "USER 10001:10001", "USER 0:0", "ends as root"),
        ("Dockerfile", "USER 10001:10001", "", "ends as root"),
        ("Dockerfile", "vyvo_runner.schema", "true", "does not write the schema"),
        ("template.yaml", "modality: image", "modality: smell", "modality"),
        ("template.yaml", "name: digits-diffusion", "name: other", "name must be the folder's"),
        ("template.yaml", "resources:", "resource:", "template.yaml"),
        ("template.yaml", "  seed:", "  sede:", "inputs are not the parameters of run: sede, seed"),
        ("template.yaml", "inputs:", "needs_weights: maybe\ninputs:", "needs_weights"),
        ("template.yaml", ">=3.11,<3.14", "three", "PEP 440"),
        ("template.yaml", "inputs:", "source_requirements: [r.txt]\ninputs:", "without a source"),
        ("template.yaml", "inputs:", "source: cog\ninputs:", "predict.py is the repository's"),
    ],
)
def test_the_check_finds_what_is_wrong(
    copy: Path, file: str, old: str, new: str, problem: str
) -> None:
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    assert any(problem in each for each in check_template(copy)), check_template(copy)


def test_an_upload_by_another_name_counts(copy: Path) -> None:
    text = (copy / "predict.py").read_text()
    text = text.replace(
        "import vyvo_runner\n", "import vyvo_runner\nfrom vyvo_runner import upload as put\n"
    )
    (copy / "predict.py").write_text(text.replace("vyvo_runner.upload(", "put("))
    assert check_template(copy) == []


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "predict.py").unlink()
    assert check_template(copy) == ["predict.py is missing"]
    (copy / "template.yaml").unlink()
    with pytest.raises(TemplateInvalid, match=r"template\.yaml"):
        read_template(copy)
