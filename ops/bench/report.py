"""What every benchmark reports: rows of one form, as a table and as JSON."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one engine at one work."""

    bench: str
    work: str
    model: str
    engine: str
    metric: str
    unit: str
    median: float
    low: float
    high: float
    limit: float | None = None
    """What the hardware allows at best, in the same unit."""

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        *,
        bench: str,
        work: str,
        model: str,
        engine: str,
        metric: str,
        unit: str,
        limit: float | None = None,
    ) -> "Row":
        """The row for the values of several runs, at least one."""
        return cls(
            bench,
            work,
            model,
            engine,
            metric,
            unit,
            median(values),
            min(values),
            max(values),
            limit,
        )


def print_rows(
    rows: Sequence[Row], title: str, columns: Mapping[str, Callable[[Row], str]] | None = None
) -> None:
    """Show the rows as a table on standard output; what all rows share stands above it.

    `columns` are further ones, by their headings.
    """
    further = columns or {}
    names = ("work", "model", "engine")
    differ = [name for name in names if len({getattr(row, name) for row in rows}) > 1]
    shared = [f"{name}: {getattr(rows[0], name)}" for name in names if rows and name not in differ]
    table = Table(title="\n".join([title, *shared]), title_justify="left")
    for name in (*differ, "metric"):
        table.add_column(name)
    for name in ("median", "low", "high", "limit"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for name in further:
        table.add_column(name, justify="right")
    for row in rows:
        limit = "" if row.limit is None else _number(row.limit)
        figures = (_number(row.median), _number(row.low), _number(row.high), limit)
        more = [show(row) for show in further.values()]
        table.add_row(
            *(getattr(row, name) for name in differ), row.metric, *figures, row.unit, *more
        )
    Console().print(table)


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write the rows as a JSON list. Raises OSError."""
    content = json.dumps([asdict(row) for row in rows], indent=1)
    path.write_text(content + "\n", encoding="utf-8")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
