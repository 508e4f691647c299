"""The tables of docs/styles.md are those of the tests that prove them.

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``; ``--update-golden`` rewrites it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from .test_recognise_forms import FORMS
from .test_recognise_lookalikes import NONE
from .test_recognise_partial import PARTIAL
from .test_recognise_styles import FULL, Gathered
from .test_strangers import FULL as WHOLE
from .test_strangers import STRANGERS, TOLD

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "styles.md"
BLOCK = re.compile(r"<!-- (?!end)(\w+) -->\n(?:.*?\n)??<!-- end -->\n", re.DOTALL)

Row = tuple[str, ...]


def said(kind: type[Gathered]) -> str:
    """The first line of a form's docstring, without its stop."""
    assert kind.__doc__, f"{kind.__name__} has no docstring to show"
    return kind.__doc__.splitlines()[0].rstrip(".")


def proof(kind: type[Gathered]) -> str:
    """The form's name, linked to the file of its test."""
    return f"[`{kind.__name__}`](../tests/capture/{kind.__module__.rpartition('.')[2]}.py)"


def recognised_forms() -> Iterable[Row]:
    yield "what is written otherwise", "how", "proved by"
    for part in dict.fromkeys([*FORMS, *FULL]):
        for kind in [*FULL.get(part, []), *FORMS.get(part, [])]:
            yield part, said(kind), proof(kind)


def others(kinds: Iterable[tuple[type[Gathered], str]]) -> Iterable[Row]:
    yield "what differs", "the reason, in part", "proved by"
    for kind, reason in kinds:
        yield said(kind), reason, proof(kind)


def strangers() -> Iterable[Row]:
    verdicts = ("full", "partial", "none", "refused")
    yield "", "files", *verdicts
    for title, start in (("Butterfly mixtures", "true_"), ("lookalikes", "look_")):
        names = [path.stem for path in STRANGERS.glob(f"{start}*.py")]
        told = [TOLD.get(name, WHOLE)[0] for name in names]
        yield title, str(len(names)), *(str(told.count(verdict)) for verdict in verdicts)


def stranger(start: str) -> Iterable[Row]:
    yield "file", "verdict", "the reason, in part"
    for name, (verdict, reason) in TOLD.items():
        if name.startswith(start):
            yield f"[`{name}`](../tests/strangers/{name}.py)", verdict, reason


TABLES: dict[str, Callable[[], Iterable[Row]]] = {
    "full": recognised_forms,
    "partial": lambda: others(PARTIAL),
    "none": lambda: others(NONE),
    "strangers": strangers,
    "exceptions": lambda: stranger("true_"),
    "lookalikes": lambda: stranger("look_"),
}


def markdown(rows: Iterable[Row]) -> str:
    """The rows as a table whose first row is its head; "None." where there is only that."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    if not body:
        return "None."
    return "\n".join([head, "|---" * (head.count(" | ") + 1) + "|", *body])


def renewed(page: str) -> str:
    """The page with all its tables as they are now."""
    return BLOCK.sub(
        lambda found: f"<!-- {found[1]} -->\n{markdown(TABLES[found[1]]())}\n<!-- end -->\n", page
    )


def test_the_page_shows_what_the_tests_prove(golden: Callable[[Path, str], None]) -> None:
    """docs/styles.md shows every form that is tested, every refusal, and no other."""
    page = PAGE.read_text()
    assert sorted(found[1] for found in BLOCK.finditer(page)) == sorted(TABLES)
    golden(PAGE, renewed(page))


@pytest.mark.parametrize("within", ["", "| former |\n|---|\n"])
def test_a_table_is_replaced(within: str) -> None:
    """Text around a table stays, and nothing of the old table does."""
    page = renewed(f"one\n<!-- partial -->\n{within}<!-- end -->\ntwo\n")
    assert page.startswith("one\n<!-- partial -->\n| what differs |")
    assert page.endswith("|\n<!-- end -->\ntwo\n")
    assert "former" not in page


def test_every_form_is_named_once() -> None:
    """No form stands in two tables."""
    forms = [kind for table in (FULL, FORMS) for kinds in table.values() for kind in kinds]
    kinds = [*forms, *(kind for kind, _ in [*PARTIAL, *NONE])]
    assert len(kinds) == len(set(kinds))


def test_every_lookalike_has_its_reason() -> None:
    """What becomes of each lookalike is said, and it is not recognition in full."""
    names = {path.stem for path in STRANGERS.glob("*.py")}
    assert {name for name in names if name.startswith("look_")} <= set(TOLD) <= names
    assert all(verdict != "full" and reason for verdict, reason in TOLD.values())
