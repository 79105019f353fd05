"""Figures of several policies side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from ops.bench.report import Row
from ops.bench.serve_figures import Metric
from ops.bench.workloads.session import Session
from ops.simulate.figures import simulated_figures
from ops.simulate.simulation import Cluster, simulate


def simulated_rows(
    cluster: Cluster, policies: Sequence[str], runs: Mapping[int, Sequence[Session]], work: str
) -> list[Row]:
    """A row for each policy and metric over the runs, which are sessions by their seed.

    Raises ValueError as `simulate` does.
    """
    rows = []
    for policy in policies:
        found: list[Mapping[Metric, float]] = [
            simulated_figures(simulate(cluster, policy, sessions, seed))
            for seed, sessions in runs.items()
        ]
        rows += [
            Row.over(
                [figures[metric] for figures in found],
                bench="simulate",
                work=work,
                model=cluster.profile.name,
                engine=policy,
                metric=metric.name,
                unit=metric.unit,
            )
            for metric in found[0]
        ]
    return rows


def at_rate(sessions: Sequence[Session], rate: float) -> list[Session]:
    """The sessions with their starts so many times as close."""
    return [replace(session, start_s=session.start_s / rate) for session in sessions]


def print_side_by_side(rows: Sequence[Row]) -> None:
    """A table with a column for each policy: medians over the runs."""
    policies = list(dict.fromkeys(row.engine for row in rows))
    table = Table(title=f"trunkline simulate: {rows[0].work}", title_justify="left")
    table.add_column("metric")
    for policy in policies:
        table.add_column(policy, justify="right")
    table.add_column("unit")
    medians = {(row.metric, row.engine): row.median for row in rows}
    for metric, unit in dict.fromkeys((row.metric, row.unit) for row in rows):
        cells = [f"{medians[metric, policy]:,.4g}" for policy in policies]
        table.add_row(metric, *cells, unit)
    Console().print(table)
