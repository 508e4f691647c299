"""The numbers of `gelu_poly`, which its kernels and its meaning share."""

from __future__ import annotations

# (1 - Phi(t))**(1/4) for t up to the limit, as a polynomial, lowest power first: minimax (Lawson)
# for the error of GELU, with a first number such that it is x / 2 next to zero.
GELU_POLY_LIMIT = 4.22
GELU_POLY_SQUARINGS = 2
GELU_POLY_TAIL = (
    0.8408964276313782,
    -0.16707172989845276,
    -0.05249898508191109,
    0.007018940523266792,
    0.003300965530797839,
    -0.0005434773047454655,
)
