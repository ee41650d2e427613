"""Source from a git host over HTTPS: what is fetched, what is recorded, what is refused."""

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.git_https import GitHost, git_host
from vyvo_dagster.building.source import Source, SourceLimits, fetch_source
from vyvo_dagster.building.types import BuildCanceled, BuildContext
from vyvo_dagster.errors import BuildFailed, InvalidInput


@dataclass
class Fetcher:
    """Fetches from the test's host into one folder."""

    host: GitHost
    folder: Path
    lines: list[str] = field(default_factory=list[str])
    cancel: threading.Event = field(default_factory=threading.Event)

    def line(self, step: str, text: str) -> None:
        self.lines.append(f"{step}: {text}")

    def fetch(self, name: str, ref: str | None = None, **limits: object) -> Source:
        context = BuildContext(data_dir=self.folder, log=self, cancel=self.cancel)
        given = {"hosts": [self.host.netloc], "ca": self.host.ca, **limits}
        return fetch_source(
            self.host.url(name), ref, self.folder / "source", SourceLimits(**given), context
        )

    def nothing_left(self) -> bool:
        return list(self.folder.iterdir()) == []


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with git_host(tmp_path) as running:
        yield running


@pytest.fixture
def fetcher(host: GitHost, tmp_path: Path) -> Fetcher:
    (tmp_path / "build").mkdir()
    return Fetcher(host, tmp_path / "build")


def test_a_branch_a_tag_and_a_commit_are_resolved(host: GitHost, fetcher: Fetcher) -> None:
    made = host.make("model", {"predict.py": "one", "pkg/data.bin": b"\0\1", "run.sh": "x"})
    first = made.git("rev-parse", "HEAD")
    made.git("tag", "-a", "v1.0", "-m", "one")
    (made.work / "run.sh").chmod(0o755)
    second = made.commit({"predict.py": "two", "übung.txt": "ü"})
    default = fetcher.fetch("model")
    assert (default.commit, default.ref) == (second, "HEAD")
    assert (default.path / "predict.py").read_text() == "two"
    assert (default.path / "pkg/data.bin").read_bytes() == b"\0\1"
    assert (default.path / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (default.path / "übung.txt").read_text() == "ü"
    assert not (default.path / ".git").exists()
    for ref in ("v1.0", first):
        old = fetcher.fetch("model", ref)
        assert old.commit == first
        assert (old.path / "predict.py").read_text() == "one"
        assert not (old.path / "übung.txt").exists()
    assert fetcher.fetch("model", "main").commit == second
    assert f"is commit {second}" in "\n".join(fetcher.lines)
    assert sorted(p.name for p in fetcher.folder.iterdir()) == ["source"]


def test_nothing_of_the_repository_runs_here(
    host: GitHost, fetcher: Fetcher, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    evil = f"#!/bin/sh\ntouch {marker}\n"
    made = host.make(
        "evil",
        {
            ".gitattributes": "* filter=evil diff=evil\n*.txt text eol=crlf export-ignore\n",
            ".gitconfig": f'[filter "evil"]\n\tsmudge = touch {marker}\n',
            "hooks/post-checkout": evil, "setup.py": evil, "a.txt": "line\n",
        },
    )  # fmt: skip
    for hook in ("post-update", "post-receive"):
        (made.served / "hooks").mkdir(exist_ok=True)
        (made.served / "hooks" / hook).write_text(evil)
    fetched = fetcher.fetch("evil")
    # Bytes as they were committed: no attribute of the repository acts on them.
    assert (fetched.path / "a.txt").read_bytes() == b"line\n"
    assert not marker.exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/etc/passwd", "leads outside"),
        ("../../../etc/passwd", "leads outside"),
        ("sub/../../x", "leads outside"),
        ("sub/up/..", "leads outside"),
        ("nothing-there", "outside of the repository or nowhere"),
        ("link", "outside of the repository or nowhere"),
        (".", "a folder that holds it"),
        ("..", "leads outside"),
    ],
)
def test_a_link_out_of_the_tree_is_refused(
    host: GitHost, fetcher: Fetcher, target: str, said: str
) -> None:
    made = host.make("links", {"sub/file": "x"})
    # sub/up is the root, so that sub/up/.. is outside, though its words say inside.
    (made.work / "sub" / "up").symlink_to(".." if target == "sub/up/.." else "file")
    (made.work / "link").symlink_to(target)
    made.commit({})
    with pytest.raises(BuildFailed, match=said):
        fetcher.fetch("links")
    assert fetcher.nothing_left()


def test_links_inside_are_kept(host: GitHost, fetcher: Fetcher) -> None:
    made = host.make("links", {"sub/file": "x"})
    (made.work / "link").symlink_to("sub/file")
    (made.work / "folder").symlink_to("sub")
    made.commit({})
    fetched = fetcher.fetch("links")
    assert (fetched.path / "link").is_symlink()
    assert (fetched.path / "folder" / "file").read_text() == "x"


def test_a_tree_that_git_would_not_make_is_refused(host: GitHost, fetcher: Fetcher) -> None:
    made = host.make("odd", {"a": "x"})
    blob = made.blob(b"content")
    link = made.blob(b"/tmp")
    inner = _tree(made, [("100644", "file", blob)])
    cases = {
        "is there twice": [("100644", "same", blob), ("100644", "same", blob)],
        "leads outside": [("120000", "esc", link), ("40000", "esc", inner)],
        "is not taken": [("100644", "..", blob)],
        "name '.git": [("40000", ".git", inner)],
        "name '.GIT": [("40000", ".GIT", inner)],
        "name 'a": [("100644", "a\\b", blob)],
    }
    for said, entries in cases.items():
        made.commit_tree(_tree(made, entries))
        with pytest.raises(BuildFailed, match=f"{said}|there twice"):
            fetcher.fetch("odd")
        assert fetcher.nothing_left()
    assert not Path("/tmp/file").exists()


def _tree(made: object, entries: list[tuple[str, str, str]]) -> str:
    raw = b"".join(
        f"{mode} {name}".encode() + b"\0" + bytes.fromhex(sha) for mode, name, sha in entries
    )
    return made.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw)  # type: ignore[attr-defined]


def test_a_submodule_and_an_lfs_pointer_are_refused(host: GitHost, fetcher: Fetcher) -> None:
    made = host.make("sub", {"a": "x"})
    made.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},vendor/lib")
    made.git("commit", "--quiet", "-m", "sub")
    made.publish()
    with pytest.raises(BuildFailed, match="vendor/lib is a submodule"):
        fetcher.fetch("sub")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    host.make("lfs", {"weights/model.bin": pointer})
    with pytest.raises(BuildFailed, match=r"weights/model\.bin is a Git LFS pointer.*weights_uri"):
        fetcher.fetch("lfs")
    assert fetcher.nothing_left()


def test_a_bomb_is_not_written(host: GitHost, fetcher: Fetcher) -> None:
    made = host.make("bomb", {"zeros": bytes(30 << 20)})
    with pytest.raises(BuildFailed, match="files are larger than 1000000 bytes"):
        fetcher.fetch("bomb", max_bytes=1_000_000)
    # Ten entries of a tree of ten entries, and so on: 10^10 files in twelve objects.
    tree = _tree(made, [("100644", f"f{n}", made.blob(b"x")) for n in range(10)])
    for _ in range(9):
        tree = _tree(made, [("40000", f"d{n}", tree) for n in range(10)])
    made.commit_tree(tree)
    with pytest.raises(BuildFailed, match="more than 5000 files"):
        fetcher.fetch("bomb", max_files=5000)
    assert fetcher.nothing_left()


def test_a_repository_too_large_to_fetch(host: GitHost, fetcher: Fetcher) -> None:
    noise = subprocess.run(
        ["head", "-c", "6000000", "/dev/urandom"], capture_output=True, check=True
    )
    host.make("large", {"noise": noise.stdout})
    with pytest.raises(BuildFailed, match="is larger than 2000000 bytes"):
        fetcher.fetch("large", max_bytes=2_000_000)
    assert fetcher.nothing_left()


def test_what_cannot_be_fetched_says_why(host: GitHost, fetcher: Fetcher) -> None:
    host.make("model", {"a": "x"})
    with pytest.raises(BuildFailed, match="has no ref no-such"):
        fetcher.fetch("model", "no-such")
    with pytest.raises(BuildFailed, match=r"^source"):
        fetcher.fetch("nothing")
    with pytest.raises(BuildFailed, match="redirects; name where it is now"):
        fetcher.fetch("moved/model")
    with pytest.raises(BuildFailed, match=r"certificate|SSL"):
        fetcher.fetch("model", ca=None)
    with pytest.raises(BuildFailed, match="gave up after 1 s"):
        fetcher.fetch("slow/model", seconds=1.0)
    assert fetcher.nothing_left()


def test_hosts_and_refs_that_are_not_allowed(host: GitHost, fetcher: Fetcher) -> None:
    host.make("model", {"a": "x"})
    with pytest.raises(InvalidInput, match="VYVO_SOURCE_HOSTS"):
        fetcher.fetch("model", hosts=["localhost"])
    with pytest.raises(InvalidInput, match="local, private or malformed"):
        fetcher.fetch("model", hosts=["*"])
    for ref in ("--upload-pack=touch /tmp/x", "a..b", "a b", "x.lock", "@{1}", "a\nb", "/a"):
        with pytest.raises(InvalidInput, match="branch, a tag"):
            fetcher.fetch("model", ref)
    assert host.requests == []


def test_a_public_name_that_resolves_inside_is_refused(host: GitHost, fetcher: Fetcher) -> None:
    context = BuildContext(data_dir=fetcher.folder, log=fetcher)
    limits = SourceLimits(hosts=["*"], ca=host.ca, resolver=lambda _host, _port: ["10.0.0.7"])
    with pytest.raises(InvalidInput, match=r"resolves to 10\.0\.0\.7"):
        fetch_source("https://git.example/a/b", None, fetcher.folder / "s", limits, context)


def test_a_cancel_stops_the_fetch(host: GitHost, fetcher: Fetcher) -> None:
    threading.Timer(0.5, fetcher.cancel.set).start()
    with pytest.raises(BuildCanceled):
        fetcher.fetch("slow/model")
    assert fetcher.nothing_left()
