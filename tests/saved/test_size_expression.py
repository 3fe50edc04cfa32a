"""Arithmetic on sizes as text: as sympy writes it, and nothing else."""

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from dit_cachegraph.saved.size_expression import parse_sizes

A, B = sympy.symbols("s0 s1", integer=True, positive=True)


@pytest.mark.parametrize(
    "expression",
    [
        sympy.Integer(7),
        A,
        2 * A * B - 3,
        FloorDiv(A, 2) * FloorDiv(B + 1, 3),
        sympy.Eq(Mod(A * B, 4), 0),
        sympy.Ne(FloorDiv(A, 2), 1),
        sympy.Le(A + B, 12),
        sympy.Gt(A, B),
        sympy.Max(A, 2 * B),
        sympy.And(sympy.Lt(A, 5), sympy.Ge(B, 2)),
        sympy.Or(sympy.Eq(A, 3), sympy.Eq(B, 3)),
    ],
    ids=str,
)
def test_it_is_what_sympy_wrote(expression):
    parsed = parse_sizes(str(expression))
    for a in range(2, 9):
        for b in range(2, 9):
            assert parsed({"s0": a, "s1": b}) == expression.subs({A: a, B: b})


@pytest.mark.parametrize(
    "text",
    ["", "s0 +", "__import__('os')", "s0.bit_length()", "[s0]", "'s0'", "1.5", "s0 if s1 else 2"]
    + ["Eq(s0, other=1)", "sin(s0)", "1 < s0 < 4", "(" * 2000 + "s0" + ")" * 2000],
    ids=range(12),
)
def test_all_else_is_refused(text):
    with pytest.raises(ValueError, match="no arithmetic on sizes"):
        parse_sizes(text)
