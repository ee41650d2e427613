"""Readers of `EnvironmentFile=`: systemd's own parser where its library is, and one from its manual.

systemd.exec(5) describes the grammar; the second reader follows it, character by character, for
machines without systemd. Where both are, a test holds them against each other.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

Reader = Callable[[Path], dict[str, str]]

_PLACES = ("/usr/lib/*/systemd", "/usr/lib/systemd", "/usr/lib64/systemd", "/lib/systemd")
_SPACE = " \t\n\r"


@cache
def readers() -> list[Reader]:
    """All that there are on this machine."""
    library = next(
        (found for place in _PLACES for found in Path("/").glob(f"{place[1:]}/libsystemd-shared-*.so")),
        None,
    )  # fmt: skip
    return [by_the_manual] if library is None else [by_the_manual, _by_systemd(library)]


def _by_systemd(path: Path) -> Reader:
    library = ctypes.CDLL(str(path))
    strings = ctypes.POINTER(ctypes.c_char_p)
    library.load_env_file.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(strings)]
    library.strv_env_clean_with_callback.argtypes = [strings, ctypes.c_void_p, ctypes.c_void_p]
    library.strv_env_clean_with_callback.restype = strings
    library.strv_free.argtypes = [strings]

    def by_systemd(file: Path) -> dict[str, str]:
        read = strings()
        code = library.load_env_file(None, str(file).encode(), ctypes.byref(read))
        assert code >= 0, f"systemd refuses the file: errno {-code}"
        found: dict[str, str] = {}
        # As exec does: what is no valid assignment is dropped.
        kept = library.strv_env_clean_with_callback(read, None, None) if read else read
        place = 0
        while kept and (entry := kept[place]) is not None:
            name, _, value = entry.decode().partition("=")
            found[name] = value
            place += 1
        library.strv_free(kept)
        return found

    return by_systemd


def by_the_manual(file: Path) -> dict[str, str]:
    """`EnvironmentFile=` as systemd.exec(5) says, for text whose names are valid or are dropped."""
    found: dict[str, str] = {}
    rest = file.read_text(encoding="utf-8").replace("\r", "\n")
    while rest:
        rest = rest.lstrip(_SPACE)
        if rest[:1] in {"#", ";"}:
            rest = _after_comment(rest)
            continue
        line, newline, after = rest.partition("\n")
        # The first character is the name's, even where it is an equals sign.
        name, equals, _ = line[1:].partition("=")
        name = line[:1] + name
        if not equals:
            rest = after if newline else ""
            continue
        value, rest = _value(rest[len(name) + 1 :])
        name = name.rstrip(_SPACE)
        if name.replace("_", "a").isalnum() and name.isascii() and not name[0].isdigit():
            found[name] = value
    return found


def _after_comment(text: str) -> str:
    place = 0
    while place < len(text) and text[place] != "\n":
        place += 2 if text[place] == "\\" else 1
    return text[place + 1 :]


def _value(text: str) -> tuple[str, str]:
    """One value and what follows its line. Quoted and bare parts stand side by side."""
    out, spaces, place, bare = "", "", 0, False
    while place < len(text) and text[place] != "\n":
        char = text[place]
        if not bare and char in {"'", '"'}:
            part, place = _quoted(text, place + 1, char)
            out += part
            continue
        if char == "\\":
            escaped = text[place + 1 : place + 2]
            out, spaces, bare = out + spaces + escaped.replace("\n", ""), "", True
            place += 2
            continue
        if char in _SPACE:
            spaces += char if bare else ""
        else:
            out, spaces, bare = out + spaces + char, "", True
        place += 1
    return out, text[place + 1 :]


def _quoted(text: str, place: int, quote: str) -> tuple[str, int]:
    out = ""
    while place < len(text) and text[place] != quote:
        char = text[place]
        if char == "\\" and quote == '"':
            place += 1
            after = text[place : place + 1]
            if after in {'"', "\\", "`", "$"}:
                out += after
            elif after and after != "\n":
                out += char + after
        else:
            out += char
        place += 1
    return out, place + 1
