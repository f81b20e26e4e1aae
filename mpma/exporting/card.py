"""README.md of an exported model: what it is, what it was made of, what it may be used for, how to load it.

Decisions: only what is known is told, and what is not known is said to be unknown; figures come from the
run's own files and stand with what they were measured on; an evaluation of other weights is left out and
named. No place, user, host, identifier or report text reaches the card. It is Markdown, meant to be edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mpma.data.dataset_info import DatasetInfo
from mpma.exporting.card_figures import Evaluation, Validation
from mpma.exporting.card_loading import loading, prose
from mpma.exporting.layout import ExportDescription
from mpma.exporting.search_record import SearchRecord

HONESTY: Final = (
    "This is an implementation after the abstract of MPMA (Zhang et al., IEEE TMM 2023, "
    "[arXiv 2305.07920](https://arxiv.org/abs/2305.07920)), with MRM, ALTA, GLoRIA, MGCA, R2GenCMN and "
    "M2-Transformer for what it leaves open. No table, weight or schedule of the paper is known to us and no "
    "figure of it is compared with."
)


_WHAT: Final = (
    "A vision-language model of radiographs and their reports, pre-trained by Multi-task Paired Masking "
    "with Alignment: masked image and masked report are reconstructed together, aligned globally and "
    "locally, and fused through a memory."
)

_PURPOSE: Final = (
    "For research on representations of images and reports: retrieval, probes, fine-tuning, clusters of "
    "an archive. **Not for diagnosis**, triage or any decision about a patient: nothing here was tested "
    "for that. Scanners, populations and report styles other than those it learned from may change every "
    "figure below."
)

_DATA_USE: Final = (
    "**Data-use note.** Weights trained on confidential or non-commercial data inherit the conditions of "
    "those data. Models of this kind can memorise: parts of rare reports or images may be recoverable "
    "from the weights. Unless the dataset was ingested with another model's tokeniser, the vocabulary in "
    "`tokenizer.json` was derived from the training reports and holds words that the reports of at least "
    "two patients share, which can include names that de-identification missed, such as a physician's: "
    "look through it before you share this folder. Share it with nobody who may not see the data, unless "
    "their owner agreed."
)


@dataclass(frozen=True)
class CardFacts:
    """All that a card is written from."""

    description: ExportDescription
    timm_arguments: Mapping[str, Any]
    """Of `timm.create_model`, for the printed call."""
    finished: bool
    """Whether the run had reached its end at this step."""
    planned_steps: int
    """Steps that the run was to have."""
    provenance: Mapping[str, Any]
    """provenance.json; empty where it cannot be read."""
    data: DatasetInfo | None
    """Of the training data; None where they are not at hand."""
    validation: Validation | None
    """None where the run recorded none."""
    evaluations: Sequence[Evaluation]
    """Those of exactly these weights."""
    left_out: Sequence[str]
    """Files of evaluations that are not, or that cannot be read."""
    search: SearchRecord | None
    """None where no search is known."""
    untrained: Mapping[str, str]
    """Kinds of vectors that no loss reached, with the reason."""


def model_card(facts: CardFacts) -> bytes:
    """The card's Markdown."""
    sections = (
        _head(facts.description),
        _use(facts),
        loading(facts.description, facts.timm_arguments),
        _data(facts),
        _training(facts),
        _search(facts.search),
        _validation(facts.validation),
        _evaluations(facts),
    )
    return ("\n\n".join("\n".join(section) for section in sections) + "\n").encode()


def _head(what: ExportDescription) -> list[str]:
    image, report, memory = what.image, what.report, what.memory
    named = {"width": image.width, "layers": image.layers, "heads": image.heads}
    sizes = ", ".join(f"{name} {value}" for name, value in named.items() if value is not None)
    slots = f", {memory.resolved_slots} slots" if memory.kind != "none" else ""
    blocks = f", {what.fusion.layers} layers" if what.fusion.kind == "cross_attention" else ""
    return [
        "---",
        "library_name: mpma",
        "tags: [medical-imaging, radiology, vision-language, masked-image-modelling]",
        "---",
        "",
        f"# {what.name}: MPMA, step {what.step}",
        "",
        *prose(_WHAT),
        "",
        *prose(HONESTY),
        "",
        "| part | |",
        "|---|---|",
        f"| image encoder | `{image.backbone}`, {sizes or 'its own sizes'}, patches of {image.patch_size} |",
        f"| its input | one grey channel, {image.size} x {image.size} pixels |",
        f"| report encoder | BERT, {report.layers} layers of width {report.width} |",
        f"| its input | {what.facts.vocabulary_size} word pieces, at most {report.max_tokens} tokens |",
        f"| fusion and memory | {what.fusion.kind}{blocks}; memory {memory.kind}{slots} |",
        f"| alignment space | {what.alignment.width} numbers, unit norm |",
        f"| weights | `{what.weights_hash}` |",
    ]


def _use(facts: CardFacts) -> list[str]:
    lines = [
        "## Use",
        "",
        *prose(_PURPOSE),
        "",
        *prose(_DATA_USE),
    ]
    if facts.untrained:
        lines += ["", "**Not trained in this run**, and of no use:"]
        lines += [f"- the {kind} vectors: {reason}." for kind, reason in facts.untrained.items()]
    return lines


def _data(facts: CardFacts) -> list[str]:
    what, info = facts.description, facts.data
    lines = ["## Training data", "", f"Fingerprint `{what.data_fingerprint}`."]
    if info is None:
        told = (
            "The dataset was not at hand when this card was written: sources, licences and sizes are unknown."
        )
        lines += ["", *prose(told)]
    else:
        if info.synthetic:
            told = "generated radiographs and reports of no person. The model knows nothing of patients."
            lines += ["", *prose(f"**Synthetic**: {told}")]
        lines += ["", "| split | pairs | patients | studies |", "|---|---:|---:|---:|"]
        for name, split in info.splits.items():
            lines.append(f"| {name} | {split.pairs} | {split.patients} | {split.studies} |")
        lines += ["", "| source | pairs |", "|---|---:|", *_counts(info.sources, "not stated")]
        lines += ["", "| licence | pairs |", "|---|---:|", *_counts(info.licenses, "none stated")]
        lines += ["", f"{info.quarantine.rows} candidates were refused at ingest."]
    began = _began_with(what)
    if began:
        told = (
            f"The training did not begin at random: {'; '.join(began)}. The data and licences behind those "
        )
        lines += ["", *prose(told + "weights count as well, and are not listed here.")]
    return lines


def _began_with(what: ExportDescription) -> list[str]:
    began = []
    if what.started_from.image == "timm":
        began.append(f"timm's published weights of `{what.image.backbone}`")
    elif what.started_from.image == "file":
        began.append("the weight file of an image encoder")
    if what.started_from.report == "bert":
        began.append("a pretrained BERT")
    if what.started_from.other_run:
        began.append("the checkpoint of another run")
    return began


def _counts(counts: Mapping[str, int], unnamed: str) -> list[str]:
    return [f"| {_cell(name) or unnamed} | {count} |" for name, count in sorted(counts.items())]


def _training(facts: CardFacts) -> list[str]:
    what, known = facts.description, facts.provenance
    ended = "the run's end" if facts.finished else f"of {facts.planned_steps} that were planned"
    revision = known.get("git_revision")
    code = f"`{revision.removesuffix('+')}`" if isinstance(revision, str) else "not known"
    if isinstance(revision, str) and revision.endswith("+"):
        code += ", with changes that were not committed"
    lines = [
        "## Training",
        "",
        "| | |",
        "|---|---|",
        f"| run | {_cell(what.name)} |",
        f"| steps | {what.step} ({ended}) |",
        f"| seed | {what.seed} |",
        f"| configuration | `{what.config_hash}` |",
        f"| loss weights | {', '.join(f'{name} {value:g}' for name, value in what.loss_weights)} |",
        f"| code revision | {code} |",
    ]
    packages = known.get("packages")
    if isinstance(packages, Mapping):
        versions = ", ".join(f"{_cell(name)} {_cell(version)}" for name, version in packages.items())
        lines.append(f"| packages | Python {_cell(known.get('python', '?'))}, {versions} |")
    return lines


def _search(search: SearchRecord | None) -> list[str]:
    lines = ["### Search", ""]
    if search is None:
        return [*lines, "Not from a search, as far as is known."]
    trials = f", {search.trials} trials" if search.trials else ""
    lines.append(f"This run {search.relation} ({_cell(search.search)}{trials}).")
    if not search.account:
        return [*lines, "The search has not ended: nothing is confirmed."]
    return [*lines, "The search's own account:", "", *(f"> {line}" for line in search.account)]


def _validation(found: Validation | None) -> list[str]:
    if found is None:
        return ["## Validation", "", "The run recorded no validation at or before this step."]
    return [
        "## Validation",
        "",
        *prose(
            f"On held-out patients of the same data, as the run recorded it at step {found.step}, beside the "
            "untrained model. Choices may have been made on these patients."
        ),
        "",
        f"| figure | untrained | step {found.step} |",
        "|---|---:|---:|",
        *(f"| `{name}` | {first} | {last} |" for name, first, last in found.rows),
    ]


def _evaluations(facts: CardFacts) -> list[str]:
    lines = ["## Evaluation"]
    if not facts.evaluations:
        lines += ["", "Not evaluated on downstream tasks: `python -m orchestration.evaluate` does it."]
    for evaluation in facts.evaluations:
        lines += ["", *_evaluation(evaluation)]
    if facts.left_out:
        told = "Left out, since they are of other weights or cannot be read"
        lines += ["", f"{told}: {', '.join(map(_cell, facts.left_out))}."]
    return lines


def _evaluation(evaluation: Evaluation) -> list[str]:
    lines = [f"### {_cell(evaluation.name)}", ""]
    if evaluation.data:
        lines.append(f"On data `{_cell(evaluation.data)}`, with intervals of 95 % over patients.")
    if evaluation.note:
        lines.append(_cell(evaluation.note) + ".")
    if not evaluation.rows:
        return [*lines, "No figure came out."]
    columns = list(dict.fromkeys(model for row in evaluation.rows for model in row.values))
    lines += [
        "",
        f"| task | figure | {' | '.join(map(_cell, columns))} |",
        "|---|---|" + "---:|" * len(columns),
    ]
    for row in evaluation.rows:
        cells = " | ".join(row.values.get(column, "") for column in columns)
        lines.append(f"| {_cell(row.task)} | `{_cell(row.figure)}` | {cells} |")
    return lines


def _cell(text: object) -> str:
    return " ".join(str(text).replace("|", "/").split())
