"""Recording and alert rules: Prometheus' own checks and unit tests of them, and what they refer to."""

import re
import subprocess
from pathlib import Path

import prometheus_client
import yaml

from tests.prometheus import DEPLOY, programs
from vyvo_dagster.telemetry import metrics

DOCS = Path(__file__).parents[2] / "docs" / "observability.md"
NAME = re.compile(r"\bvyvo_[a-z0-9_]+")
SUFFIX = re.compile(r"_(bucket|count|sum|total)$")


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        [programs()["promtool"], *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def rules(file: str) -> list[dict[str, object]]:
    groups = yaml.safe_load((DEPLOY / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def measured() -> set[str]:
    """Names of all metrics, without the suffixes that they are exposed with."""
    return {metric._name for metric in every()}


def every() -> list[prometheus_client.metrics.MetricWrapperBase]:
    return [getattr(metrics, name) for name in metrics.__all__ if name.isupper() and name != "CONTENT_TYPE"]  # fmt: skip


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))
    promtool("check", "rules", "--lint-fatal", str(DEPLOY / "rules.yml"), str(DEPLOY / "alerts.yml"))  # fmt: skip


def test_the_rules_say_what_their_tests_say() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(DEPLOY / "tests.yml"))


def test_every_alert_has_a_test_and_tells_what_to_do() -> None:
    alerts = {str(rule["alert"]) for rule in rules("alerts.yml")}
    tested = (DEPLOY / "tests.yml").read_text()
    docs = DOCS.read_text()
    assert alerts
    assert [a for a in alerts if f"alertname: {a}" not in tested and f'"{a}"' not in tested] == []
    assert [a for a in alerts if f"### {a}\n" not in docs] == []


def test_rules_ask_for_metrics_that_there_are() -> None:
    known = measured()
    for file in ("rules.yml", "alerts.yml"):
        for rule in rules(file):
            for name in NAME.findall(str(rule["expr"])):
                assert SUFFIX.sub("", name) in known, (name, rule)


def test_every_metric_is_documented() -> None:
    docs = DOCS.read_text()
    for metric in every():
        shown = "{" + ",".join(metric._labelnames) + "}" if metric._labelnames else ""
        name = metric._name + ("_total" if isinstance(metric, prometheus_client.Counter) else "")
        assert f"`{name}{shown}`" in docs, f"{name}{shown} is not in docs/observability.md"
