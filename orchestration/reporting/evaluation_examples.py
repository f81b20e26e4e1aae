"""Examples of a task as the page shows them: picture, texts side by side, what was found.

Decisions: nothing here is made unless the user asked for examples; they hold pixels and text of patients,
which the head of the page says. Texts are the data's and the model's own, never shortened, and escaped as
everything is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from mpma.downstream.contract import Example, Related
from orchestration.reporting.blocks import note
from orchestration.reporting.example_pictures import (
    PREDICTED_COLOUR,
    TRUE_COLOUR,
    attention_uri,
    grey_uri,
    outlines_uri,
)
from orchestration.reporting.html import Child, Html, element

TRUE_MASK: Final = "true mask"
PREDICTED_MASK: Final = "predicted mask"

_TEXT_NAMES: Final[Mapping[str, str]] = {
    "report": "true report",
    "generated": "generated report",
    "answer": "true answer",
    "given": "given by the model",
    "labels": "true labels",
}
_RELATED_WIDEST: Final = 128


def example_parts(task: str, examples: Sequence[Example]) -> list[Child]:
    """The examples of a task under a heading of their own."""
    if not examples:
        return []
    overlays = {name for example in examples for name in example.overlays}
    parts: list[Child] = [element("h3", "Examples")]
    if task in _TASK_NOTES:
        parts.append(note(_TASK_NOTES[task]))
    if overlays & {TRUE_MASK, PREDICTED_MASK}:
        parts.append(
            element(
                "div",
                element("span", TRUE_MASK, class_="mark", style=_dot(TRUE_COLOUR)),
                element("span", PREDICTED_MASK, class_="mark", style=_dot(PREDICTED_COLOUR)),
                class_="legend",
            )
        )
    if overlays - {TRUE_MASK, PREDICTED_MASK}:
        parts.append(
            note("Red: where the word under the picture looks, each word scaled to its own strongest patch.")
        )
    wide = any(example.related or len(example.texts) > 1 for example in examples)
    cards = [_card(task, example) for example in examples]
    return [*parts, element("div", *cards, class_="examples wide" if wide else "examples")]


_TASK_NOTES: Final[Mapping[str, str]] = {
    "retrieval": "The query, and the nearest of the gallery with their similarity, best first; a hit "
    "has the query’s report.",
    "report_generation": "The true report beside the one that the model wrote.",
    "vqa": "What was asked, the true answer, and the one that the model gave.",
}


def _card(task: str, example: Example) -> Html:
    pictures = _pictures(example)
    texts = _texts(task, example)
    return element(
        "article",
        element("p", example.title, class_="kicker"),
        element(
            "div",
            element("div", *pictures, class_="shots") if pictures else None,
            element("div", *texts, class_="texts") if texts else None,
            class_="pair",
        ),
        _related(example.related) if example.related else None,
        class_="example",
    )


def _pictures(example: Example) -> list[Html]:
    if example.image is None:
        return []
    masks = {
        colour: example.overlays[name]
        for colour, name in ((TRUE_COLOUR, TRUE_MASK), (PREDICTED_COLOUR, PREDICTED_MASK))
        if name in example.overlays
    }
    if masks:
        shown = [(outlines_uri(example.image, masks), "outlines of the masks", None)]
    else:
        shown = [(grey_uri(example.image), "the image as the model saw it", None)]
    found: list[Html] = [_shot(uri, alternative, caption) for uri, alternative, caption in shown]
    for name, overlay in example.overlays.items():
        if name not in (TRUE_MASK, PREDICTED_MASK):
            uri = attention_uri(example.image, overlay)
            found.append(_shot(uri, f"where the word {name} looks", name, "shot word"))
    return found


def _shot(uri: str, alternative: str, caption: str | None, kind: str = "shot") -> Html:
    image = element("img", src=uri, alt=alternative, loading="lazy")
    return element("figure", image, element("figcaption", caption) if caption else None, class_=kind)


def _texts(task: str, example: Example) -> list[Html]:
    right = _answered_right(example) if task == "vqa" else None
    found = []
    for name, value in example.texts.items():
        title = (
            "given labels" if name == "given" and "labels" in example.texts else _TEXT_NAMES.get(name, name)
        )
        kind = None
        if name == "given" and right is not None:
            title, kind = f"{title}: {'right' if right else 'wrong'}", "hit" if right else "miss"
        found.append(
            element(
                "div",
                element("p", title, class_=f"what {kind}" if kind else "what"),
                element("p", value or "(empty)", class_="said"),
            )
        )
    return found


def _answered_right(example: Example) -> bool | None:
    if "answer" not in example.texts or "given" not in example.texts:
        return None
    one, other = (example.texts[name].strip().casefold() for name in ("answer", "given"))
    return one == other


def _related(related: Sequence[Related]) -> Html:
    items = []
    for place, one in enumerate(related, 1):
        words = f"{place}. {'hit, ' if one.hit else ''}{one.score:.2f}"
        inner: list[Child] = [element("p", words, class_=f"what {'hit' if one.hit else 'miss'}")]
        if one.image is not None:
            uri = grey_uri(one.image, _RELATED_WIDEST)
            inner.append(element("img", src=uri, alt=f"image found at place {place}", loading="lazy"))
        if one.text is not None:
            inner.append(element("p", one.text, class_="said"))
        items.append(element("li", *inner, class_="hit" if one.hit else None))
    pictures = all(one.image is not None for one in related)
    return element("ol", *items, class_="related pictured" if pictures else "related")


def _dot(colour: tuple[int, int, int]) -> str:
    return f"--c: rgb({colour[0]}, {colour[1]}, {colour[2]})"
