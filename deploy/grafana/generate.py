"""Grafana's dashboards, as code: `python deploy/grafana/generate.py` writes dashboards/*.json.

What is told by every api and orchestrator alike is read through the recording rules, which take its
maximum; what each process counts is summed here.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from grafana_foundation_sdk.builders import bargauge, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.dashboard import Panel as PanelModel

_HERE: Final = Path(__file__).parent
_SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${source}")
_RATE: Final = "$__rate_interval"
# Of histograms, for one quantile.
_P50, _P95 = 0.5, 0.95


P = TypeVar("P", timeseries.Panel, stat.Panel, bargauge.Panel)


class _Panel(Protocol):
    def build(self) -> PanelModel: ...


@dataclass(frozen=True)
class Query:
    """One expression; `legend` is what a series is called."""

    expr: str
    legend: str = ""


def quantile(q: float, metric: str, by: str, where: str = "") -> Query:
    """A quantile over the time that the panel shows a point for."""
    buckets = (
        f"sum by ({by}, le) (rate({metric}_bucket{where}[{_RATE}]))"
        if by
        else f"sum by (le) (rate({metric}_bucket{where}[{_RATE}]))"
    )
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(",") if label)
    return Query(f"histogram_quantile({q:g}, {buckets})", f"{legend} p{q * 100:g}".strip())


def rate(metric: str, by: str, where: str = "") -> Query:
    """Events a second."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return Query(f"sum by ({by}) (rate({metric}{where}[{_RATE}]))", legend)


def graph(title: str, unit: str, *queries: Query, about: str = "") -> _Panel:
    """Lines over time, half a row wide."""
    legend = (
        VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    )  # fmt: skip
    panel = timeseries.Panel().title(title).description(about).unit(unit).height(8).span(12)
    panel = panel.min(0).fill_opacity(8).legend(legend).datasource(_SOURCE)
    return _with(panel, queries)


def number(title: str, unit: str, query: Query, about: str = "") -> _Panel:
    """One figure of now."""
    panel = stat.Panel().title(title).description(about).unit(unit).height(4).span(4)
    return _with(panel.datasource(_SOURCE), [query])


def bars(title: str, unit: str, *queries: Query, most: float | None = None) -> _Panel:
    """A bar for each series of now."""
    panel = bargauge.Panel().title(title).unit(unit).height(8).span(12).min(0).datasource(_SOURCE)
    return _with(panel if most is None else panel.max(most), queries)


def _with(panel: P, queries: Iterable[Query]) -> P:
    for index, query in enumerate(queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        panel = panel.with_target(target.ref_id(chr(ord("A") + index)))
    return panel


def dashboard(
    uid: str, title: str, rows: Sequence[tuple[str, Sequence[_Panel]]], *, by_model: bool = False
) -> Dashboard:
    """A dashboard whose source of data can be chosen, and where `by_model` says so the model."""
    made = (
        Dashboard(title).uid(uid).tags(["vyvo"]).readonly().refresh("10s").time("now-1h", "now")
        .timezone("browser").tooltip(1)
        .with_variable(DatasourceVariable("source").label("Prometheus").type("prometheus"))
    )  # fmt: skip
    if by_model:
        made = made.with_variable(
            QueryVariable("model").label("model").datasource(_SOURCE)
            .query("label_values(vyvo_jobs_total, model)").refresh(2)
            .include_all(True).all_value(".+").multi(True)
        )  # fmt: skip
    for name, panels in rows:
        made = made.with_row(Row(name))
        for panel in panels:
            made = made.with_panel(panel)
    return made


_MODEL: Final = '{model=~"$model"}'


def jobs() -> Dashboard:
    """Queues, jobs, their latency, the api."""
    return dashboard("vyvo-jobs", "Vyvo: jobs", by_model=True, rows=[
        ("Now", [
            number("Jobs that wait", "short", Query(f"sum(vyvo:queue_depth:max{_MODEL})")),
            number("The oldest waits", "s", Query(f"max(vyvo:queue_oldest_seconds:max{_MODEL})")),
            number("Jobs a second", "ops", Query(f"sum(rate(vyvo_jobs_total{_MODEL}[{_RATE}]))")),
            number("Failed or expired, 5 min", "percentunit",
                   Query(f'sum(vyvo:jobs:rate5m{{model=~"$model",status=~"failed|expired"}} or vyvo:jobs:rate5m{_MODEL} * 0)'
                         f" / (sum(vyvo:jobs:rate5m{_MODEL}) > 0) or vector(0)")),
            number("Stream entries are late by", "s", Query("vyvo:outbox_lag_seconds:max"),
                   "Postgres is ahead of Redis by so much."),
            number("Event streams", "short", Query("sum(vyvo_sse_clients)")),
        ]),
        ("Queues", [
            graph("Jobs that wait", "short", Query(f"vyvo:queue_depth:max{_MODEL}", "{{model}} {{priority}}")),
            graph("The oldest waits", "s", Query(f"vyvo:queue_oldest_seconds:max{_MODEL}", "{{model}} {{priority}}")),
        ]),
        ("Jobs", [
            graph("Ended", "ops", rate("vyvo_jobs_total", "model, status", _MODEL)),
            graph("From submission to end", "s",
                  quantile(_P50, "vyvo_job_latency_seconds", "model", '{model=~"$model",phase="total"}'),
                  quantile(_P95, "vyvo_job_latency_seconds", "model", '{model=~"$model",phase="total"}')),
            graph("Waiting for a node", "s",
                  quantile(_P95, "vyvo_job_latency_seconds", "model", '{model=~"$model",phase="queue"}')),
            graph("On the node", "s", quantile(_P95, "vyvo_agent_attempt_seconds", "model, phase", _MODEL)),
        ]),
        ("Api", [
            graph("Answers", "reqps", rate("vyvo_http_request_seconds_count", "route, method, status")),
            graph("Until an answer begins", "s", quantile(_P95, "vyvo_http_request_seconds", "route, method")),
            graph("gRPC", "s", quantile(_P95, "vyvo_grpc_request_seconds", "method")),
            graph("Webhooks", "ops", rate("vyvo_webhooks_total", "outcome")),
        ]),
    ])  # fmt: skip


def nodes() -> Dashboard:
    """Nodes, their GPUs, and their agents."""
    return dashboard("vyvo-nodes", "Vyvo: nodes", [
        ("Now", [
            number("Nodes that are ready", "short", Query("sum(vyvo:node_up:max)")),
            number("Slots", "short", Query('sum(vyvo:node_capacity:max{kind="slots"})')),
            number("Attempts under way", "short", Query("sum(vyvo_agent_attempts_running)")),
        ]),
        ("GPUs", [
            bars("Memory in use", "bytes", Query("vyvo:gpu_memory_bytes:max", "{{node}} {{gpu}}")),
            bars("Utilisation", "percentunit", Query("vyvo:gpu_utilization_ratio:max", "{{node}} {{gpu}}"), most=1),
            graph("Memory in use of all that a node has", "percentunit", Query(
                "sum by (node) (vyvo:gpu_memory_bytes:max)"
                ' / on (node) sum by (node) (vyvo:node_capacity:max{kind="gpu_memory_bytes"} > 0)', "{{node}}")),
            graph("Utilisation", "percentunit", Query("vyvo:gpu_utilization_ratio:max", "{{node}} {{gpu}}")),
        ]),
        ("Nodes", [
            graph("Ready", "short", Query("vyvo:node_up:max", "{{node}}")),
            graph("Capacity", "short", Query('vyvo:node_capacity:max{kind=~"cpus|gpus|slots"}', "{{node}} {{kind}}")),
        ]),
        ("Agents", [
            graph("Attempts that ended", "ops", rate("vyvo_agent_attempts_total", "instance, status")),
            graph("Attempts under way", "short", Query("vyvo_agent_attempts_running", "{{instance}}")),
            graph("Heartbeats are answered after", "s", quantile(_P95, "vyvo_agent_heartbeat_seconds", "instance")),
            graph("Reports that wait", "short", Query("vyvo_agent_reports_waiting", "{{instance}}")),
        ]),
    ])  # fmt: skip


def builds() -> Dashboard:
    """Builds, and the worker that makes them."""
    return dashboard("vyvo-builds", "Vyvo: builds", [
        ("Now", [
            number("Builds, a day", "short", Query("sum(increase(vyvo_build_duration_seconds_count[1d]))")),
            number("Failed, a day", "short", Query(
                'sum(increase(vyvo_build_duration_seconds_count{status="failed"}[1d])) or vector(0)')),
            number("Half take less than", "s", Query(
                "histogram_quantile(0.5, sum by (le) (increase(vyvo_build_duration_seconds_bucket[1d])))")),
        ]),
        ("Builds", [
            graph("Ended, an hour", "short", Query(
                "sum by (template, status) (increase(vyvo_build_duration_seconds_count[1h]))", "{{template}} {{status}}")),
            graph("They take, p95 of an hour", "s", Query("vyvo:build_duration_seconds:p95", "{{template}} {{backend}}")),
            graph("Phases, mean of an hour", "s", Query(
                "sum by (backend, phase) (increase(vyvo_build_phase_seconds_sum[1h]))"
                " / sum by (backend, phase) (increase(vyvo_build_phase_seconds_count[1h]))", "{{backend}} {{phase}}")),
            graph("Runs of the worker", "s", quantile(_P95, "vyvo_worker_run_seconds", "kind")),
        ]),
    ])  # fmt: skip


def workflows() -> Dashboard:
    """Workflow runs, and what drives them."""
    return dashboard("vyvo-workflows", "Vyvo: workflows", [
        ("Now", [
            number("Runs under way", "short", Query("sum(vyvo_workflow_runs_live)")),
            number("Ends that Dagster was not told of, oldest", "s", Query("max(vyvo_workflow_report_lag_seconds)")),
            number("Runs a second", "ops", Query(f"sum(rate(vyvo_workflow_runs_total[{_RATE}]))")),
        ]),
        ("Runs", [
            graph("Runs that ended", "ops", rate("vyvo_workflow_runs_total", "status")),
            graph("Steps that ended", "ops", rate("vyvo_workflow_steps_total", "status")),
            graph("A turn of the engine", "s", quantile(_P50, "vyvo_workflow_turn_seconds", ""),
                  quantile(_P95, "vyvo_workflow_turn_seconds", "")),
            graph("Events told to Dagster", "ops", Query(f"sum(rate(vyvo_workflow_dagster_events_total[{_RATE}]))", "events")),
        ]),
    ])  # fmt: skip


def generated() -> dict[str, str]:
    """Each dashboard's file as it should be, by its name."""
    encoder = JSONEncoder(sort_keys=True, indent=2)
    made = {"jobs": jobs(), "nodes": nodes(), "builds": builds(), "workflows": workflows()}
    return {f"{name}.json": encoder.encode(each.build()) + "\n" for name, each in made.items()}


def main() -> None:
    """Write the dashboards into the folder beside this file."""
    folder = _HERE / "dashboards"
    for name, text in generated().items():
        (folder / name).write_text(text)
    sys.stdout.write(f"wrote {folder}\n")


if __name__ == "__main__":
    main()
