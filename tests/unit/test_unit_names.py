"""Names of systemd units."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vyvo_dagster.domain.unit import escape, instance_unit, unescape
from vyvo_dagster.errors import InvalidInput

# What systemd-escape made of them (systemd 252).
KNOWN = {
    "acme/tiny": "acme-tiny",
    "acme--tiny": r"acme\x2d\x2dtiny",
    "chetwinlow1--Ovi_1.0:x@1+2": r"chetwinlow1\x2d\x2dOvi_1.0:x\x401\x2b2",
    ".hidden": r"\x2ehidden",
    "größe \\": r"gr\xc3\xb6\xc3\x9fe\x20\x5c",
}


@pytest.mark.parametrize(("text", "escaped"), KNOWN.items())
def test_it_is_written_as_systemd_escape_writes_it(text: str, escaped: str) -> None:
    assert escape(text) == escaped
    if program := shutil.which("systemd-escape"):
        said = subprocess.run([program, "--", text], capture_output=True, text=True, check=True)
        assert said.stdout.rstrip("\n") == escaped


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_escaped_comes_back_and_is_a_file_name(text: str) -> None:
    assert unescape(escape(text)) == text
    assert not set(escape(text)) & set("/\0 @%*?[")


def test_a_name_that_systemd_does_not_take_is_refused() -> None:
    assert instance_unit("vyvo-runner", "a--b") == r"vyvo-runner@a\x2d\x2db.service"
    with pytest.raises(InvalidInput, match="systemd takes 255"):
        instance_unit("vyvo-runner", "-" * 64)
