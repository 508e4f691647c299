"""What torch.export refused, told by the user's line and the rewrite that works."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from ..errors import Unsupported
from .number import NumberUsed
from .refusals import advice_for
from .sources import source_of, user_frame

# What stands in the refused line -> the rewrite that works.
_REWRITES = (
    (".tolist(", "keep counts as tensors: no .tolist(); select rows with torch.where or gather"),
    (".item(", "keep the value a tensor: no .item(); compare and select with torch.where"),
    ("numel()", "remove the `if` and keep all rows: select with torch.where(mask, ..., 0)"),
    (".any()", "remove the `if`: run the branch always, and select with torch.where(mask, ...)"),
    (".all()", "remove the `if`: run the branch always, and select with torch.where(mask, ...)"),
    ("if ", "compute both branches and select with torch.where(condition, a, b)"),
    ("while ", "write a fixed number of steps"),
    ("for ", "loop over a number that does not depend on the data"),
    ("grouped_mm(", "gather each row's matrix, or compute all experts and select"),
    ("split(", "split at fixed sizes; give all rows to each expert and select with torch.where"),
)
_LOOP_FREE = (
    "gather each row's parameters by its expert's index (angles[experts]) and drop the loop; "
    "or keep all rows in the loop and weigh them with torch.where(mask, ..., 0)"
)
_PLAIN = "write it with plain calls of torch, which torch.export.export(model, inputs) takes"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hangs_on_data(error: Exception) -> bool:
    """Whether torch.export failed at a number that only data tells."""
    words = ("DataDependent", "data-dependent", "unbacked", "Could not guard", ".numpy() is not")
    return any(word in f"{type(error).__name__} {error}" for word in words)


def refusal_of_export(error: Exception) -> Unsupported:
    """Control flow on data, by the line that has it and the rewrite that works."""
    where, line = user_frame(error.__traceback__)
    if isinstance(error, NumberUsed):
        shown = f", in `{line}`" if line else ""
        return Unsupported(f"{error}{shown}", where=where or None, help=error.advice or _LOOP_FREE)
    is_data = hangs_on_data(error)
    otherwise = _LOOP_FREE if is_data else _PLAIN
    rewrite = next((advice for part, advice in _REWRITES if part in line), otherwise)
    shown = f" in `{line}`" if line else ""
    what = "Python control flow hangs on data" if is_data else "torch.export refuses the model"
    reason = "" if is_data else f": {type(error).__name__}: {first_line(error)}"
    help = f"{rewrite}\n        {otherwise}" if rewrite != otherwise else rewrite
    return Unsupported(f"{what}{shown}{reason}", where=where or None, help=help)


def refusal_of_decomposition(odd: Sequence[fx.Node], error: Exception) -> Unsupported:
    """The first call that torch was to write out as others, and why it did not."""
    node = next(node for node in odd if node.op == "call_function")
    target = str(node.target)
    why = f"{type(error).__name__}: {first_line(error)}"
    if hangs_on_data(error):
        why = "what it does hangs on data"
    return Unsupported(
        f"torch cannot write {target} out as known calls: {why}",
        where=source_of(node) or None,
        help=advice_for(target),
    )
