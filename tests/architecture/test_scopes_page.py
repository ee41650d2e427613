"""The page of scopes says what the routes ask for. VYVO_UPDATE_SNAPSHOTS=1 writes it anew."""

import os
from pathlib import Path

from api.app import create_app
from api.scopes_page import page
from vyvo_dagster.settings import S3Settings, Settings

PAGE = Path(__file__).parents[2] / "docs" / "scopes.md"


def test_the_page_is_what_the_routes_say() -> None:
    made = page(create_app(Settings(_env_file=None), S3Settings()).openapi())
    if os.environ.get("VYVO_UPDATE_SNAPSHOTS"):
        PAGE.write_text(made)
    assert PAGE.read_text() == made
