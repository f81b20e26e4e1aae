"""Writes docs/search_space.schema.json from the space's own classes, so that it cannot go stale.

`python -m orchestration.search.space_reference` rewrites it. Decisions: editors are also told which keys
may be searched and which metrics exist, so that a wrong one is marked while it is typed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpma.comparability import METRICS, MOVES, OBJECTIVES
from orchestration.search.space import SearchSpace

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "search_space.schema.json"


def space_schema() -> dict[str, Any]:
    """JSON Schema of a space file."""
    schema = SearchSpace.model_json_schema(by_alias=True)
    schema["properties"]["parameters"]["propertyNames"] = {"enum": list(MOVES)}
    schema["$defs"]["Objective"]["properties"]["metric"]["enum"] = list(OBJECTIVES)
    schema["$defs"]["Constraint"]["properties"]["metric"]["enum"] = list(METRICS)
    return schema


def write() -> None:
    """Rewrite the schema."""
    SCHEMA.write_text(json.dumps(space_schema(), indent=1) + "\n")


if __name__ == "__main__":
    write()
