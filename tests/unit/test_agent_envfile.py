"""Environment files: what a reader gets back is what was written, or nothing is written."""

import os
import stat
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from systemd_reader import Reader, readers

from vyvo_dagster.agent.envfile import EnvDirectory, render
from vyvo_dagster.building.validation import validate_env
from vyvo_dagster.domain.environment import VALUE_BYTES, refused_value
from vyvo_dagster.errors import InvalidEnv, InvalidInput, InvalidModelId

HOSTILE = {
    "PLAIN": "value",
    "EMPTY": "",
    "SPACES": "  two  ",
    "DOUBLE": 'say "hi"',
    "SINGLE": "it's",
    "DOLLAR": "$HOME ${HOME} $(id) `id`",
    "BACKSLASH": "C:\\new\\table\\",
    "COMMENT": "# not a comment ; nor this",
    "TAB": "a\tb",
    "UNICODE": "größe \U0001f600",
    "SPECIFIER": "%h %n",
    "INJECT": '"\\nLD_PRELOAD="x',
}


def _read_by_shell(text: str, tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "test.env"
    file.write_text(text, encoding="utf-8")
    read = subprocess.run(
        ["/bin/sh", "-c", 'set -a; . "$1"; exec env -0', "sh", str(file)],
        capture_output=True, check=True, timeout=10, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    return dict(pair.split("=", 1) for pair in read.stdout.decode().split("\0") if "=" in pair)


def test_a_shell_reads_back_every_value(tmp_path: Path) -> None:
    read = _read_by_shell(render(HOSTILE), tmp_path)
    assert {name: read.get(name) for name in HOSTILE} == HOSTILE


ODD = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]).filter(
    lambda c: refused_value("NAME", c) is None
)
SYNTAX = st.sampled_from("\\\"'`$#;=% \taé\ufeff\U0001f600")


@pytest.mark.parametrize("read", readers(), ids=lambda r: r.__name__)
@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,8}", fullmatch=True), st.text(ODD | SYNTAX)))
def test_systemd_reads_back_every_value(
    read: Reader, tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "read-back.env"
    file.write_text(f"# a first line\n{render(env)}", encoding="utf-8")
    assert read(file) == env


@pytest.mark.parametrize("read", readers(), ids=lambda r: r.__name__)
def test_systemd_reads_back_the_longest_value(read: Reader, tmp_path: Path) -> None:
    value = ("\"$`\\'" * VALUE_BYTES)[: VALUE_BYTES - 2] + "é"
    file = tmp_path / "long.env"
    file.write_text(render({"LONG": value, "Z": "after"}), encoding="utf-8")
    assert read(file) == {"LONG": value, "Z": "after"}
    with pytest.raises(InvalidEnv, match=f"{VALUE_BYTES + 1} bytes; at most {VALUE_BYTES}"):
        render({"LONG": value + "x"})


@given(st.text("\\\"'`$#;= \tab\n", max_size=40))
def test_the_reader_of_these_tests_is_as_systemd_reads(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.env"
    file.write_text(text)
    assert len({str(sorted(read(file).items())) for read in readers()}) == 1


@pytest.mark.parametrize(
    "char",
    ["\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\ud800", "\x7f", "\ufdd0", "\uffff",
     "\U0010fffe"],
)  # fmt: skip
def test_what_a_reader_would_not_give_back_is_refused(char: str) -> None:
    with pytest.raises(InvalidEnv, match="value of NAME"):
        render({"NAME": f"a{char}LD_PRELOAD=/tmp/x.so"})
    with pytest.raises(InvalidEnv, match="value of NAME"):
        validate_env({"NAME": f"a{char}LD_PRELOAD=/tmp/x.so"})


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\nB", "A-B", "É", "A;", "#A"])
def test_a_name_that_is_no_identifier_is_refused(name: str) -> None:
    with pytest.raises(InvalidEnv, match="name"):
        render({name: "x"})


class TestEnvDirectory:
    @pytest.fixture
    def node(self) -> UUID:
        return uuid4()

    @pytest.fixture
    def folder(self, tmp_path: Path, node: UUID) -> EnvDirectory:
        return EnvDirectory(tmp_path / "etc", node)

    def test_the_file_is_named_after_the_model_and_only_its_owner_reads_it(
        self, folder: EnvDirectory
    ) -> None:
        path = folder.write(uuid4(), "acme/tiny", "1", {"A": "b"})
        assert path.name == "acme--tiny.env"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().splitlines()[1:] == ['A="b"']

    def test_a_second_version_of_a_model_gets_its_own(self, folder: EnvDirectory) -> None:
        first, second = uuid4(), uuid4()
        folder.write(first, "acme/tiny", "1", {"A": "1"})
        path = folder.write(second, "acme/tiny", "2", {"A": "2"})
        assert path.name == "acme--tiny@2.env"
        folder.remove(first)
        assert sorted(p.name for p in folder.path.iterdir()) == ["acme--tiny@2.env"]

    def test_writing_again_replaces(self, folder: EnvDirectory) -> None:
        owner = uuid4()
        folder.write(owner, "acme/tiny", "1", {"A": "1"})
        path = folder.write(owner, "acme/tiny", "1", {"A": "2"})
        assert 'A="2"' in path.read_text()
        assert len(list(folder.path.iterdir())) == 1

    def test_what_a_write_left_that_was_cut_off_goes_with_the_sweep(
        self, folder: EnvDirectory, node: UUID
    ) -> None:
        folder.write(kept := uuid4(), "acme/tiny", "1", {})
        for name in (f".acme--tiny.env.{node}.partial", f".acme--tiny.env.{uuid4()}.partial"):
            (folder.path / name).write_text("SECRET=")
        assert len(folder.sweep([kept])) == 1
        assert len([p for p in folder.path.iterdir() if p.suffix == ".partial"]) == 1

    def test_files_of_others_are_left_alone(
        self, folder: EnvDirectory, node: UUID, tmp_path: Path
    ) -> None:
        foreign = EnvDirectory(tmp_path / "etc", uuid4())
        kept, other, stale = uuid4(), uuid4(), uuid4()
        folder.write(kept, "acme/kept", "1", {})
        folder.write(stale, "acme/stale", "1", {})
        foreign.write(other, "acme/other", "1", {})
        (folder.path / "agent.env").write_text("VYVO_AGENT_NAME=mine\n")
        (folder.path / "acme--tiny.env").write_text("A=1\n")
        assert [p.name for p in folder.sweep([kept])] == ["acme--stale.env"]
        left = sorted(p.name for p in folder.path.iterdir())
        assert left == ["acme--kept.env", "acme--other.env", "acme--tiny.env", "agent.env"]
        assert folder.write(kept, "acme/tiny", "3", {}).name == "acme--tiny@3.env"

    @pytest.mark.parametrize(
        "model_id", ["../etc", "a/../b", "a", "a/b/c", "a /b", "a/b\n", "/etc/passwd"]
    )
    def test_a_model_id_never_leaves_the_folder(self, folder: EnvDirectory, model_id: str) -> None:
        with pytest.raises(InvalidModelId):
            folder.write(uuid4(), model_id, "1", {})
        assert list(folder.path.iterdir()) == []

    def test_nor_does_a_version(self, folder: EnvDirectory) -> None:
        with pytest.raises(InvalidInput):
            folder.write(uuid4(), "acme/tiny", "../1", {})

    def test_a_planted_link_is_not_followed(
        self, folder: EnvDirectory, node: UUID, tmp_path: Path
    ) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        folder.path.mkdir()
        (folder.path / f".acme--tiny.env.{node}.partial").symlink_to(victim)
        folder.write(uuid4(), "acme/tiny", "1", {"A": "b"})
        assert victim.read_text() == "precious"
