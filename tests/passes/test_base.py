"""What passes share: finding one by its name, and rewriting a graph by rules."""

from __future__ import annotations

from dataclasses import is_dataclass

import pytest

from butterflyc.compiler.errors import UnknownName
from butterflyc.compiler.ir import Graph, Node, Type, input_node, make
from butterflyc.passes import base
from butterflyc.passes.base import Walk, load, merge_equal, names, rewrite
from butterflyc.passes.merge_rotations import MergeRotations


def test_a_pass_is_found_by_the_name_of_its_file() -> None:
    """`load` finds a class by either way of writing its name, and `names` lists it."""
    assert load("merge_rotations") is MergeRotations
    assert load("merge-rotations")(max_block=8) == MergeRotations(8)
    assert "merge_rotations" in names()
    assert not {"base", "orders", "rules_shape"} & set(names())


@pytest.mark.parametrize("name", names())
def test_every_pass_has_its_name_and_says_what_it_does(name: str) -> None:
    """A pass is a frozen dataclass that knows its name, and shows a graph before and after."""
    found = load(name)
    assert is_dataclass(found)
    assert found.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert found.name == name  # type: ignore[attr-defined]
    assert isinstance(found.exact, bool)  # type: ignore[attr-defined]
    doc = base._module(name).__doc__
    assert doc is not None
    assert "->" in doc
    assert "%" in doc


def test_an_unknown_pass_lists_the_nearest() -> None:
    """A name that is no pass is an error with the nearest names."""
    with pytest.raises(
        UnknownName, match=r"unknown pass 'fuse_expert'(.|\n)*nearest: fuse_experts"
    ):
        load("fuse_expert")


def two() -> Graph:
    x = input_node("x", Type("f32", (3,)))
    return Graph("g", (x,), (make("add", make("neg", x), make("neg", x)),), {})


def test_rewrite_keeps_a_graph_that_no_rule_changes() -> None:
    """The very graph comes back, so that "unchanged" can be seen."""
    graph = two()
    assert rewrite(graph, lambda node, walk: None) is graph


def test_rewrite_merges_and_drops() -> None:
    """Equal nodes become one; what nobody reads is gone."""
    assert [node.op for node in rewrite(two(), merge_equal).nodes] == ["input", "neg", "add"]


def test_a_rule_that_changes_a_type_is_our_mistake() -> None:
    """A rule must give what has the type of the node that it replaces."""

    def wrong(node: Node, walk: Walk) -> Node | None:
        return make("sum", node, axes=(0,)) if node.op == "neg" else None

    with pytest.raises(AssertionError, match="wrong made"):
        rewrite(two(), wrong)


def test_rules_that_go_round_in_circles_are_our_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewriting ends with an error rather than never."""
    monkeypatch.setattr(base, "MOST_WALKS", 5)
    with pytest.raises(AssertionError, match="do not come to an end"):
        rewrite(
            two(), lambda node, walk: make("neg", node.operands[0]) if node.op == "neg" else None
        )
