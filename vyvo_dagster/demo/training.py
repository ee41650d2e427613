"""The demo's model: trained as a Dagster asset, once for a data directory."""

import re
import time
from collections.abc import Callable
from typing import Any

import httpx

__all__ = ["TrainingFailed", "trained_weights"]

_JOB = "train_digits_diffusion"
_ASSET = "digits_diffusion_training"
_SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": "vyvo"}
_SECONDS = 900

_LATEST = """query($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  assetMaterializations(limit: 1) { metadataEntries { label
    ... on TextMetadataEntry { text } ... on PathMetadataEntry { path } ... on UrlMetadataEntry { url }
    ... on FloatMetadataEntry { floatValue } ... on IntMetadataEntry { intValue } } } } } }"""
_LAUNCH = """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
_FOLLOW = """query($id: ID!, $after: String) {
  runOrError(runId: $id) { ... on Run { status } }
  logsForRun(runId: $id, afterCursor: $after) { ... on EventConnection { cursor
    events { __typename ... on MessageEvent { message } } } } }"""
_EPOCH = re.compile(r"epoch (\d+)\s*(?:/|of)\s*(\d+)")


class TrainingFailed(RuntimeError):
    """The training run did not succeed; the message says where to look."""


def trained_weights(
    dagster_url: str, progress: Callable[[int, int], None]
) -> tuple[str, dict[str, Any], bool]:
    """The weights' URI, the asset's metadata, and whether they were trained just now.

    Args:
        progress: called with (epoch, epochs) while it trains.
    """
    with httpx.Client(base_url=dagster_url, timeout=30.0, trust_env=False) as http:
        found = _latest(http)
        if found:
            return str(found["weights_uri"]), found, False
        _train(http, dagster_url, progress)
        found = _latest(http)
        return str(found["weights_uri"]), found, True


def _query(http: httpx.Client, query: str, variables: dict[str, Any]) -> dict[str, Any]:
    answer = http.post("/graphql", json={"query": query, "variables": variables}).json()
    if answer.get("errors"):
        raise TrainingFailed(f"Dagster: {answer['errors'][0]['message']}")
    return answer["data"]


def _latest(http: httpx.Client) -> dict[str, Any]:
    asset = _query(http, _LATEST, {"key": {"path": [_ASSET]}})["assetOrError"]
    materializations = asset.get("assetMaterializations") or []
    if not materializations:
        return {}
    return {
        entry["label"]: next((v for k, v in entry.items() if k != "label"), None)
        for entry in materializations[0]["metadataEntries"]
    }


def _train(http: httpx.Client, dagster_url: str, progress: Callable[[int, int], None]) -> None:
    params = {"selector": {"jobName": _JOB, **_SELECTOR}, "runConfigData": {}}
    launched = _query(http, _LAUNCH, {"params": params})["launchRun"]
    if launched["__typename"] != "LaunchRunSuccess":
        raise TrainingFailed(
            f"{_JOB} was not launched: {launched.get('message', launched['__typename'])}"
        )
    run_id = launched["run"]["runId"]
    cursor: str | None = None
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        data = _query(http, _FOLLOW, {"id": run_id, "after": cursor})
        cursor = data["logsForRun"].get("cursor") or cursor
        for event in data["logsForRun"].get("events", ()):
            if match := _EPOCH.search(event.get("message") or ""):
                progress(int(match[1]), int(match[2]))
        status = data["runOrError"].get("status")
        if status == "SUCCESS":
            return
        if status in {"FAILURE", "CANCELED"}:
            raise TrainingFailed(f"the training run ended as {status}: {dagster_url}/runs/{run_id}")
        time.sleep(0.5)
    raise TrainingFailed(
        f"the training did not end within {_SECONDS} s: {dagster_url}/runs/{run_id}"
    )
