"""The lowerings of ATen calls, by family: each enters its own into the table."""

from . import (  # noqa: F401
    aten_activation,
    aten_bags,
    aten_chosen,
    aten_complex,
    aten_conv,
    aten_elementwise,
    aten_fourier,
    aten_index,
    aten_linear,
    aten_norm,
    aten_order,
    aten_phase,
    aten_pool,
    aten_quantize,
    aten_reduce,
    aten_sample,
    aten_scatter,
    aten_shape,
    einsum,
)
