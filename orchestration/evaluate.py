"""python -m orchestration.evaluate: every downstream number of a run, or two runs compared.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from orchestration.command import program, run

STARTED = time.time()

app = program(
    "Evaluate a run on downstream tasks: classification, segmentation, retrieval, zero-shot, report "
    "generation and questions, beside the untrained model, with intervals over patients."
)


@app.command()
def main(
    run_folder: Annotated[
        str | None,
        typer.Option("--run", help="Folder of the run, such as runs/demo (path or URI).", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Labelled dataset made by orchestration.ingest. Default: the run's own; for a run on "
            "phantom pairs, synthetic patients that it never saw.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="Evaluation settings (YAML). Default for phantom: recipes/evaluate_demo.yaml."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: --set classification.neighbours=5. Repeatable."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Only this task. Repeatable. Default: all of the settings."),
    ] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="A further model in every table: NAME=run:FOLDER, NAME=export:FOLDER, NAME=timm, "
            "NAME=image:FILE or NAME=hf:FOLDER. Repeatable.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of this evaluation. Default: evaluation, or that of --data's folder."
        ),
    ] = None,
    with_examples: Annotated[
        bool,
        typer.Option(
            "--with-examples",
            help="Show images and texts of judged pairs in the report page, which is then confidential.",
        ),
    ] = False,
    allow_overlap: Annotated[
        bool,
        typer.Option(
            "--allow-overlap", help="Judge on patients that the model was pre-trained on; marks the result."
        ),
    ] = False,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare", help="Two evaluated runs: paired differences on the same patients, and end."
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="With --compare: also write the differences as JSON here.")
    ] = None,
    features: Annotated[
        str, typer.Option("--features", help="Where features of frozen models are kept.")
    ] = "feature-cache",
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to work on. Default: RAY_ADDRESS, else this machine."),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="Logical CPUs of the private Ray on this machine.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu or cuda. auto: a GPU per job where there are any.")
    ] = "auto",
    precision: Annotated[
        str, typer.Option("--precision", help="auto, fp32 or bf16. auto: fp32, so that scores compare.")
    ] = "auto",
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Refuse every connection that leaves the cluster, and remote places."),
    ] = False,
    dashboard: Annotated[bool, typer.Option(help="Start Ray's dashboard with the private Ray.")] = True,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings with their origins, and end.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check run, data, models and settings without a cluster, and end.")
    ] = False,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Forecast jobs, time and disk from measured steps, and end.")
    ] = False,
) -> None:
    if offline:
        from orchestration.offline import begin

        begin(address or os.environ.get("RAY_ADDRESS"), [run_folder, data, features, out, *(compare or ())])
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    if compare is not None:
        from orchestration.evaluation import comparing

        comparing.compare(*compare, name=name, out=out)
        return

    from orchestration import evaluating

    request = evaluating.Request(
        run=run_folder,
        data=data,
        config=config,
        overrides=tuple(overrides or ()),
        tasks=tuple(tasks or ()),
        baselines=tuple(baselines or ()),
        name=name,
        with_examples=with_examples,
        allow_overlap=allow_overlap,
        features=features,
        address=address or os.environ.get("RAY_ADDRESS") or None,
        cpus=cpus,
        device=device,
        precision=precision,
        dashboard=dashboard,
        started=STARTED,
    )
    if print_config:
        typer.echo(evaluating.printed_config(request), nl=False)
    elif check:
        evaluating.check(request)
    elif forecast:
        evaluating.forecast(request)
    else:
        evaluating.evaluate(request)


if __name__ == "__main__":
    run(app)
