"""The documentation of the search says what the code does: examples load, tables are complete."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.search.parameters import KINDS
from orchestration.search.records import SearchState
from orchestration.search.sections import Scheduler, Searcher
from orchestration.search.space import SearchSpace, load_space

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "search.md").read_text()
JOURNAL_PAGE = (ROOT / "docs" / "journal.md").read_text()
EXAMPLES: list[dict[str, Any]] = [
    yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_every_example_is_a_space_or_a_part_of_one(number: int, tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "search_spaces").mkdir()
    path = tmp_path / "search_spaces" / "example.yaml"
    path.write_text(yaml.safe_dump({**EXAMPLES[0], **EXAMPLES[number]}, sort_keys=False))
    loaded = load_space(path)
    assert loaded.space.searched_keys()
    given = EXAMPLES[number].get("parameters", EXAMPLES[0]["parameters"])
    assert set(loaded.space.parameters) == set(given)


def test_the_examples_show_every_part_of_a_space_and_every_kind_of_value() -> None:
    assert {part for example in EXAMPLES for part in example} == set(SearchSpace.model_fields)
    forms = [
        form
        for example in EXAMPLES
        for found in example.get("parameters", {}).values()
        for form in (found if isinstance(found, list) else [found])
    ]
    assert {name for form in forms for name in form} >= {*KINDS, "step", "or_zero", "when", "at_most"}


@pytest.mark.parametrize("section", [Searcher, Scheduler])
def test_the_tables_have_every_searcher_and_scheduler_by_name(section: type[Any]) -> None:
    table = PAGE.partition(f"| `{section.__name__.lower()}.name` |")[2].partition("\n\n")[0]
    names = section.model_fields["name"].annotation.__args__
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == sorted(
        names, key=lambda name: table.find(f"| `{name}` |")
    )
    assert all(f"| `{name}` |" in table for name in names)


def test_the_verdicts_on_objectives_are_those_of_the_lists() -> None:
    from mpma.comparability_reference import BEGIN, END, reference

    written = PAGE.partition(BEGIN)[2].partition(END)[0]
    assert written == reference(), "run python -m mpma.comparability_reference"


def test_the_options_are_those_of_the_program() -> None:
    source = (ROOT / "orchestration" / "tune.py").read_text()
    options = set(re.findall(r'"(--[a-z-]+)"', source)) | {"--no-dashboard"}
    table = PAGE.partition("| option | meaning |")[2].partition("\n\n")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", table)) == options


def test_the_files_of_a_search_are_named() -> None:
    from mpma.training.run_directory import LOCK_FILE, STOP_FILE
    from orchestration.reporting.search_report import REPORT_FILE
    from orchestration.search.conclude import BEST_FILE
    from orchestration.search.journal import JOURNAL_FILE
    from orchestration.search.ranking import FOLDER, RESULT_FILE
    from orchestration.search.steering import CONFIRMATION, TRIALS, trial_name
    from orchestration.tuning import SPACE_FILE

    table = PAGE.partition("## Files of a search")[2].partition("\n## ")[0]
    named = {JOURNAL_FILE, SPACE_FILE, BEST_FILE, REPORT_FILE, "study.db", LOCK_FILE, STOP_FILE, RESULT_FILE}
    named |= {f"{TRIALS}/{trial_name(7)}/", f"{CONFIRMATION}/trial-7-seed1/", f"{FOLDER}/", ".tune/"}
    assert [name for name in sorted(named) if f"`{name}`" not in table] == []


def _events_told() -> dict[str, set[str]]:
    """Event to the fields that docs/journal.md gives it."""
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", JOURNAL_PAGE, flags=re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}


def _events_written() -> dict[str, set[str]]:
    """Event to the fields that the code appends, where they stand there by name."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "orchestration").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "append"
                and ast.unparse(call.func.value).endswith("journal")
                and isinstance(call.args[0], ast.Constant)
            ):
                fields = {keyword.arg for keyword in call.keywords if keyword.arg}
                found.setdefault(str(call.args[0].value), set()).update(fields)
    return found


def test_the_journals_events_are_those_that_are_replayed() -> None:
    handled = {name.removeprefix("_on_") for name in vars(SearchState) if name.startswith("_on_")}
    assert set(_events_told()) == handled


def test_the_journals_fields_are_those_that_are_written() -> None:
    written = _events_written()
    assert {"suggest", "report", "compare"} <= set(written)
    written["confirm"] = {"candidates", "seeds", "steps"}  # given as one mapping
    assert {name: _events_told()[name] for name in written} == written


@pytest.mark.parametrize("page", ["README.md", "docs/search.md"])
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    folder, text = (ROOT / page).parent, (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)", text)
    assert links
    assert [target for target, _ in links if not (folder / target).exists()] == []
