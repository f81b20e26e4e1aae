"""HTML made of elements: what is not marked as HTML is escaped, so no value can become markup.

Decisions: a page is built of `Html` values only, and the only way from a plain string to one is through
escaping; `Html(...)` itself is for the room's own constant markup.
"""

from __future__ import annotations

from html import escape
from typing import Final

VOID: Final = frozenset({"img", "input", "meta"})


class Html(str):
    """Markup. Joining two gives markup; a plain string never is."""

    __slots__ = ()


Child = Html | str | int | float | None


def text(value: object) -> Html:
    """A value as escaped text; markup stays as it is."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def join(*children: Child) -> Html:
    """Children one after the other; None is nothing."""
    return Html("".join(text(child) for child in children if child is not None))


def element(name: str, /, *children: Child, **attributes: str | bool | None) -> Html:
    """One element. `class_` and `for_` lose their underscore, others turn it into a dash.

    An attribute of None or False is left out, one of True has no value.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        plain = key.rstrip("_").replace("_", "-")
        written.append(plain if value is True else f'{plain}="{escape(str(value), quote=True)}"')
    opening = f"<{' '.join([name, *written])}>"
    if name in VOID:
        return Html(opening)
    return Html(f"{opening}{join(*children)}</{name}>")
