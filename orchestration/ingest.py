"""python -m orchestration.ingest: from an archive, or from other datasets, to a dataset directory.

Heavy imports stand inside functions, so that --help answers at once.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mpma.errors import UserError
from orchestration.command import program, run

app = program(
    "Turn an archive of images and reports, or of images with labels, masks or questions, into a checked "
    "dataset: pairs split by patient, Parquet shards, a tokeniser, and a quarantine that says why something "
    "was not kept."
)


@app.command()
def main(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Layout of the archive: openi (the publisher's XML and PNG), manifest (tables of paths or "
            "embedded images), mimic_cxr (MIMIC-CXR-JPG with its reports), chexpert_plus, padchest, "
            "covid_chestxray (its cloned repository), dicom (a hospital's DICOM files and their reports), "
            "nih14 (ChestX-ray14, labels), vqamed2019 (questions), "
            "masks (folders of images and masks) or phantom (synthetic pairs, made on the spot). Or "
            "merge: the roots are datasets, which become one.",
            show_default=False,
        ),
    ] = None,
    roots: Annotated[
        list[str] | None,
        typer.Argument(
            help="The archive's folder or table file; phantom has none, merge has two or more.",
            metavar="ROOT",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option("--out", help="Dataset directory to make: a path or a URI such as s3://bucket/name."),
    ] = "",
    onto: Annotated[
        str | None,
        typer.Option(
            "--onto",
            help="Add the archive to this dataset: --out gets the pairs of both, known patients keep their "
            "splits, and the dataset itself is not changed.",
        ),
    ] = None,
    keep_tokenizer: Annotated[
        bool,
        typer.Option(
            "--keep-tokenizer",
            help="With --onto or merge: keep the (first) dataset's tokeniser, so that a model trained on it "
            "can go on. Default: train one on the new training split.",
        ),
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Option of the source: --set columns.report=text, or a threshold: --set "
            "quality.max_pixels=9000000. Repeatable.",
        ),
    ] = None,
    row_filter: Annotated[
        str | None,
        typer.Option("--filter", help="Rows to keep (manifest), such as 'modality == XR'."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="Shares of patients for train/val/test where the source gives no split."),
    ] = "0.8/0.1/0.1",
    split_seed: Annotated[int, typer.Option(min=0, help="Another seed draws other patients.")] = 0,
    key_file: Annotated[
        str | None,
        typer.Option(
            help="Secret key of the hash that names patients and draws splits; made where it is not there. "
            "Default: ~/.config/mpma/patient_key.",
            show_default=False,
        ),
    ] = None,
    hash_pair_ids: Annotated[
        bool | None,
        typer.Option(
            "--hash-pair-ids/--no-hash-pair-ids",
            help="Store keyed hashes in place of image ids. Default: where the source says that its ids "
            "identify a patient.",
            show_default=False,
        ),
    ] = None,
    short_side: Annotated[
        int,
        typer.Option(
            min=0, help="Shrink images to this shorter side in pixels; 0 keeps their size. Phantom keeps it."
        ),
    ] = 512,
    image_format: Annotated[
        str, typer.Option(help="How decoded images are stored: jpeg, or png (lossless, larger).")
    ] = "jpeg",
    jpeg_quality: Annotated[int, typer.Option(min=50, max=100, help="Quality of the JPEG.")] = 95,
    min_words: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Quarantine reports of fewer words (of the text the model reads); 0 keeps pairs without a "
            "report, for labelled sets. Default: 0 for nih14, vqamed2019 and masks, else 1.",
            show_default=False,
        ),
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Quarantine images whose shorter side has fewer pixels. Default: 64.",
            show_default=False,
        ),
    ] = None,
    vocabulary_size: Annotated[int, typer.Option(min=64, help="Most entries of the tokeniser.")] = 30_000,
    max_tokens: Annotated[
        int, typer.Option(min=8, max=4096, help="Count reports of more tokens as cut.")
    ] = 128,
    with_thumbnails: Annotated[
        bool,
        typer.Option(
            "--with-thumbnails",
            help="Put pictures of refused images and of near duplicates on quality.html, which is then as "
            "confidential as the data.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished dataset at --out.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="List, check texts and splits, print the table, read no pixel, write nothing."
        ),
    ] = False,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            metavar="DIRECTORY",
            help="Read a finished dataset anew, compare hashes, rows, images, patients and figures, and name "
            "every defect by file, row and reason; exit code 1 where there is one.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="As --check, then time a few dozen images: forecast pairs, bytes and hours (here and on "
            "--cpus), and whether --out has room. Nothing is written.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to work on. Default: RAY_ADDRESS, else this machine."),
    ] = None,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Refuse every connection that leaves the cluster, and remote places."),
    ] = False,
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", "--workers", min=1, help="Tasks at once on this machine. Default: its CPUs."),
    ] = None,
) -> None:
    if offline:
        from orchestration.offline import begin

        begin(address or os.environ.get("RAY_ADDRESS"), [*(roots or ()), out, onto, verify, key_file])
    if verify is not None:
        if source is not None:
            raise UserError("--verify takes no source", "python -m orchestration.ingest --verify DIRECTORY")
        from orchestration import verify_command

        verify_command.execute(verify, as_json, address, cpus)
        return
    from orchestration import ingest_command

    if source is None:
        raise UserError("no source is named", "python -m orchestration.ingest SOURCE ROOT --out DIRECTORY")
    ingest_command.execute(
        ingest_command.Request(
            source=source,
            root=roots[0] if roots else None,
            roots=tuple(roots or ()),
            onto=onto,
            keep_tokenizer=keep_tokenizer,
            out=out,
            overrides=list(overrides or []),
            row_filter=row_filter,
            split=split,
            split_seed=split_seed,
            key_file=key_file,
            short_side=short_side,
            image_format=image_format,
            jpeg_quality=jpeg_quality,
            min_words=min_words,
            min_side=min_side,
            vocabulary_size=vocabulary_size,
            max_tokens=max_tokens,
            overwrite=overwrite,
            check=check,
            plan=plan,
            as_json=as_json,
            address=address,
            cpus=cpus,
            hash_pair_ids=hash_pair_ids,
            with_thumbnails=with_thumbnails,
        )
    )


if __name__ == "__main__":
    run(app)
