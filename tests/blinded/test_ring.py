from __future__ import annotations

import pytest
import torch

from partopt.blinded import ring
from partopt.blinded.transcript import byte_uniformity

EDGES = [-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 2, 2**31 - 1]


def test_sums_and_differences_are_modulo_2_to_the_32():
    a, b = torch.meshgrid(*[torch.tensor(EDGES)] * 2, indexing="ij")
    for call, sign in ((ring.add, 1), (ring.subtract, -1)):
        found = call(a.repeat(1, 9).to(torch.int32), b.repeat(1, 9).to(torch.int32))
        truth = [[(x + sign * y) % 2**32 for y in EDGES] * 9 for x in EDGES]
        assert (found.to(torch.int64) % 2**32).tolist() == truth


def test_wrapping_keeps_the_residue():
    values = torch.tensor([2**31, -(2**31) - 1, 2**53, -(2**53) + 7, 2**62 + 5, *EDGES])
    found = ring.wrap(values)
    assert found.dtype == torch.int32
    assert (found.to(torch.int64) % 2**32).tolist() == [v % 2**32 for v in values.tolist()]


def test_what_would_be_promoted_is_refused():
    four = torch.zeros(4, dtype=torch.int32)
    for other in (four.to(torch.int64), four.to(torch.float32), four[:3], four[None]):
        with pytest.raises(ValueError, match="got"):
            ring.add(four, other)


def test_masks_are_uniform_and_never_the_same():
    one, two = ring.uniform((64, 64)), ring.uniform((64, 64))
    assert byte_uniformity(one) > 1e-6
    assert byte_uniformity(ring.subtract(one, two)) > 1e-6
    assert ring.uniform((3, 0)).shape == (3, 0)
