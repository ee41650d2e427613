"""The code location loads, and holds what was last agreed on.

Run with VYVO_UPDATE_SNAPSHOTS=1 to write the snapshot anew.
"""

import json
import os
from pathlib import Path
from typing import Any

from dagster import DefaultSensorStatus, Definitions, EnvVar

from vyvo_dagster.definitions import defs

SNAPSHOT = Path(__file__).with_name("code_location.json")


def described(definitions: Definitions) -> dict[str, Any]:
    graph = definitions.resolve_asset_graph()
    repository = definitions.get_repository_def()
    return {
        "assets": {
            key.to_user_string(): {
                "upstream": sorted(k.to_user_string() for k in graph.get(key).parent_keys),
                "checks": sorted(check.name for check in graph.get(key).check_keys),
                "group": graph.get(key).group_name,
                "partitions": getattr(graph.get(key).partitions_def, "name", None),
            }
            for key in sorted(graph.get_all_asset_keys())
        },
        "jobs": sorted(j.name for j in repository.get_all_jobs() if not j.name.startswith("__")),
        "sensors": {
            s.name: [s.minimum_interval_seconds, s.default_status is DefaultSensorStatus.RUNNING]
            for s in repository.sensor_defs
        },
        "schedules": {s.name: s.cron_schedule for s in repository.schedule_defs},
        "resources": sorted(repository.get_top_level_resources()),
    }


def test_the_code_location_is_the_snapshot() -> None:
    text = json.dumps(described(defs), indent=1, sort_keys=True) + "\n"
    if os.environ.get("VYVO_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert json.loads(SNAPSHOT.read_text()) == json.loads(text), (
        "the code location changed; if that is meant, run with VYVO_UPDATE_SNAPSHOTS=1"
    )


def test_everything_is_described_and_owned() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.owners, key
    repository = defs.get_repository_def()
    for definition in (*repository.sensor_defs, *repository.schedule_defs):
        assert definition.description, definition.name


def test_jobs_resolve_with_their_resources() -> None:
    Definitions.validate_loadable(defs)


def test_no_secret_is_shown() -> None:
    """The UI shows the configuration of resources: secrets are named there, never held."""
    resources: dict[str, Any] = dict(defs.resources or {})
    secrets = {"store": ["dsn"], "streams": ["url"], "objects": ["access_key", "secret_key"]}
    for name, fields in secrets.items():
        for field in fields:
            assert type(getattr(resources[name], field)) is EnvVar, (name, field)


def test_definitions_only_compose() -> None:
    source = Path(__file__).parents[2] / "vyvo_dagster" / "definitions.py"
    assert len(source.read_text().splitlines()) < 80
