"""What benchmarks ask kernels for is what a compiled model asks them for."""

from __future__ import annotations

import pytest

from butterflyc.bench.kernels import best, dense_spec, ternary_spec
from butterflyc.compiler.ir.ops import OPS
from butterflyc.compiler.run.kernel import spec_for
from butterflyc.kernels.lanes import Lanes
from butterflyc.kernels.record import Tensor


@pytest.mark.parametrize("spec", [ternary_spec(4, 64, 16), dense_spec(4, 64, 16)], ids=str)
def test_specs_say_every_attribute(spec):
    """A kernel that reads any attribute of its op finds it, and one is chosen for the spec."""
    assert dict(spec.attributes).keys() == OPS[spec.op].attributes.keys()
    assert best(spec, Lanes()).supports(spec, Lanes())


def test_what_an_op_does_not_have_is_refused():
    """An attribute that no such op has is an error that names it."""
    with pytest.raises(ValueError, match="no attribute 'bit'"):
        spec_for("ternary_dot", [Tensor("i8", (1, 4))], [Tensor("i32", (1, 4))], bit=7)
