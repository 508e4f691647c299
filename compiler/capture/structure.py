"""What tuples, dicts and the like hold, in torch's order and under the names that they give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils import _pytree as pytree

# Where a value stands in a structure: keys and places, outermost first.
Place = tuple[str | int, ...]


def parts_of(value: Any) -> list[tuple[str | int, Any]] | None:
    """What ``value`` holds, by key; None where torch knows no structure in it."""
    children, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    return None if spec.is_leaf() else list(zip(_keys(spec, len(children)), children, strict=True))


def leaves_of(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """All values in a structure that are none themselves, with their places."""
    parts = parts_of(value)
    if parts is None:
        yield place, value
    for key, part in parts or ():
        yield from leaves_of(part, (*place, key))


def places_of(spec: pytree.TreeSpec, place: Place = ()) -> Iterator[Place]:
    """The places of all leaves of a structure that is known by its form alone."""
    children = spec.children()
    if spec.is_leaf():
        yield place
    for key, child in zip(_keys(spec, len(children)), children, strict=True):
        yield from places_of(child, (*place, key))


def _keys(spec: pytree.TreeSpec, count: int) -> list[str | int]:
    """The names of what a structure holds, or the places where it has no names.

    A dict's context holds its keys, that of a named tuple is its class, others hold lists of names.
    """
    several = spec.context if isinstance(spec.context, list | tuple) else ()
    named = (getattr(kind, "__match_args__", None) for kind in (spec.context, spec.type))
    for names in (spec.context, *several, *named):
        if isinstance(names, list | tuple) and len(names) == count:
            keys = [name for name in names if isinstance(name, str | int)]
            if len(keys) == count:
                return keys
    return list(range(count))
