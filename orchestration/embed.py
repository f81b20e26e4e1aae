"""python -m orchestration.embed: image, text and fused vectors of every pair of a dataset, as Parquet.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from orchestration.command import program, run

STARTED = time.time()

app = program(
    "Embed a dataset with a run's model or an exported one: one row per pair with its id, split, keyed "
    "patient hash and vectors, in one Parquet file."
)


@app.command()
def main(
    run_folder: Annotated[
        str | None,
        typer.Option("--run", help="Folder of the run, such as runs/demo (path or URI).", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="An exported model, instead of --run.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Dataset made by orchestration.ingest. Default: the run's own.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="Parquet file to write (path or URI).", show_default=False)
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option("--split", help="train, val or test. Repeatable. Default: all.")
    ] = None,
    what: Annotated[
        str, typer.Option("--what", help="Vectors to write, with commas between them.")
    ] = "image,image_mean,text,fused",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to work on. Default: RAY_ADDRESS, else this machine."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Logical CPUs of the private Ray on this machine.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu or cuda. auto: a GPU per task where there are any.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="auto, fp32 or bf16. auto: fp32, as evaluations use.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pairs of one pass.")] = 64,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Refuse every connection that leaves the cluster, and remote places."),
    ] = False,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard with the private Ray.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Check model, data and place without a cluster, and end.")
    ] = False,
) -> None:
    if offline:
        from orchestration.offline import begin

        begin(address or os.environ.get("RAY_ADDRESS"), [run_folder, model, data, out])
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    from orchestration import embedding

    request = embedding.Request(
        run=run_folder,
        model=model,
        data=data,
        out=out,
        splits=tuple(splits or ()),
        what=tuple(part.strip() for part in what.split(",") if part.strip()),
        overwrite=overwrite,
        address=address or os.environ.get("RAY_ADDRESS") or None,
        cpus=cpus,
        device=device,
        precision=precision,
        batch_size=batch_size,
        dashboard=dashboard,
        started=STARTED,
    )
    if check:
        embedding.check(request)
    else:
        embedding.embed(request)


if __name__ == "__main__":
    run(app)
