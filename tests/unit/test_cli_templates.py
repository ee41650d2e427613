"""`vyvo templates`."""

from pathlib import Path

from click.testing import CliRunner

from vyvo_dagster.cli import main


def vyvo(*argv: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["templates", *argv])
    return result.exit_code, result.output


def test_those_of_this_repository_are_listed_and_well_made() -> None:
    code, output = vyvo("list")
    assert code == 0
    assert {line.split()[0] for line in output.splitlines()[1:]} >= {"cog", "diffusion", "video"}
    assert vyvo("check") == (0, "7 of 7 templates are well made\n")


def test_a_started_template_is_well_made_until_it_is_spoiled(tmp_path: Path) -> None:
    code, output = vyvo("new", "my-model", "--in", str(tmp_path))
    assert code == 0, output
    folder = tmp_path / "my-model"
    assert vyvo("check", str(folder)) == (0, "1 of 1 templates are well made\n")
    text = (folder / "predict.py").read_text()
    (folder / "predict.py").write_text(text.replace("vyvo_runner.upload(", "print("))
    code, output = vyvo("check", str(folder))
    assert code == 1
    assert "my-model: Predictor.run never calls vyvo_runner.upload" in output


def test_wrong_names_are_an_error_of_one_line(tmp_path: Path) -> None:
    assert vyvo("new", "My Model", "--in", str(tmp_path))[0] == 1
    assert vyvo("new", "../x", "--in", str(tmp_path))[0] == 1
    assert vyvo("new", "a", "--in", str(tmp_path))[0] == 0
    code, output = vyvo("new", "a", "--in", str(tmp_path))
    assert (code, output) == (1, f"Error: {tmp_path / 'a'} is there already\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
