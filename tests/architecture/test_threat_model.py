"""The threat model names code and tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text()


def test_what_the_threat_model_names_exists() -> None:
    named = set(
        re.findall(
            r"`((?:integration|unit|api|security|domain|building|dispatch)/[\w/]+\.py)`", PAGE
        )
    )
    assert len(named) >= 20
    places = (ROOT, ROOT / "vyvo_dagster", ROOT / "tests")
    assert [n for n in sorted(named) if not any((p / n).is_file() for p in places)] == []


def test_it_links_to_pages_that_exist() -> None:
    for link in re.findall(r"\]\(([\w-]+\.md)", PAGE):
        assert (ROOT / "docs" / link).is_file(), link
