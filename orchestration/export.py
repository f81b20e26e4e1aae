"""python -m orchestration.export: a run as a folder that loads anywhere, with a card that says what it is.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from orchestration.command import program, run

app = program(
    "Export a run: weights, configuration, tokeniser and model card, loadable by mpma.load, by timm (image "
    "encoder) and by transformers (report encoder). No Ray is needed."
)


@app.command()
def main(
    run_folder: Annotated[
        str | None,
        typer.Option("--run", help="Folder of the run, such as runs/demo (path or URI).", show_default=False),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", help="Folder to write (path or URI): empty or absent.", show_default=False),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", min=0, help="Checkpoint to export. Default: the newest whole one.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export; foreign files stay.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="The run's dataset, for sources and licences in the card. Default: where the run found it.",
        ),
    ] = None,
    searches: Annotated[
        str, typer.Option("--searches", help="Where searches are kept, for the run's origin in the card.")
    ] = "searches",
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Refuse every connection that leaves the cluster, and remote places."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check run, checkpoint and place, write nothing, and end.")
    ] = False,
) -> None:
    if offline:
        from orchestration.offline import begin

        begin(None, [run_folder, out, data, searches])
    from orchestration import exporting

    request = exporting.Request(run_folder, out, step, overwrite, data, searches)
    if check:
        exporting.check(request)
    else:
        exporting.export(request)


if __name__ == "__main__":
    run(app)
