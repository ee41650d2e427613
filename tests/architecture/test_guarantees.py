"""Every test that the guarantees name exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_promise_names_tests_that_exist() -> None:
    named = NAMED.findall((ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 10
    for path, test in named:
        source = (ROOT / path).read_text()
        assert re.search(rf"def {test}\(", source), f"{path} has no {test}"
