"""`trunkline bench …`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure Trunkline and its peers.")

Json = Annotated[Path | None, typer.Option("--json", help="Also write the rows to this file.")]


@app.command()
def engine(
    model: Annotated[
        str, typer.Option(help="Directory of a model, or the name of a shape to make.")
    ] = "smol-110m",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each engine, in turn.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the batch.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 256,
    output_tokens: Annotated[int, typer.Option(min=2)] = 128,
    json: Json = None,
) -> None:
    """Offline throughput beside Hugging Face `generate`, and where a step's time goes."""
    from ops.bench.engine import BatchWork, bench_engine
    from ops.bench.report import print_rows, write_rows

    rows = bench_engine(model, BatchWork(requests, prompt_tokens, output_tokens), runs)
    print_rows(rows, "trunkline bench engine")
    if json is not None:
        write_rows(rows, json)
