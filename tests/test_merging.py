"""TIES and DARE beside their formulas, and requests one after another."""

import pytest
import torch
from test_algebra import assert_close, dense, project

from erase.core.delta import DenseDelta, LowRankDelta
from erase.core.merging import dare, ties
from erase.erasure.algebra import compose, dare_merge, ties_merge
from erase.erasure.erasure import Erasure


def test_ties_trims_elects_a_sign_and_averages_those_that_have_it():
    one = torch.tensor([4.0, -3.0, 0.1, 2.0])
    two = torch.tensor([2.0, 5.0, 0.2, -1.0])
    # Trimmed to three of four each: (4, -3, 0, 2) and (2, 5, 0, -1); signs of the sums + + 0 +.
    assert torch.equal(ties([one, two], 0.75), torch.tensor([3.0, 5.0, 0.0, 2.0]))
    assert torch.equal(ties([one], 1.0), one)
    assert int((ties([one, one], 0.25) != 0).sum()) == 1


def test_dare_keeps_a_share_and_is_the_sum_on_average():
    generator = torch.Generator().manual_seed(0)
    change = torch.ones(200, 100)
    found = dare([change, 2 * change], 0.25, generator)
    assert set(found.unique().tolist()) == {0.0, 4.0, 8.0, 12.0}
    assert float(found.mean()) == pytest.approx(3, rel=0.05)
    assert torch.equal(dare([change], 1.0, generator), change)


@pytest.mark.parametrize("merged", [ties_merge, dare_merge])
def test_merged_erasures_are_dense_and_note_their_parts(merged):
    parts = [Erasure({"unet.a": DenseDelta(torch.randn(3, 4))}, {"request": {"concepts": [name]}})
             for name in ("ghost", "pizza")]  # fmt: skip
    joint = merged(parts, density=0.5)
    assert joint.recipe["request"]["concepts"] == ["ghost", "pizza"]
    assert joint.recipe["density"] == 0.5
    assert_close(dense(joint), dense(merged(parts, density=0.5)))
    with pytest.raises(ValueError, match=r"density is 0.*share"):
        merged(parts, density=0.0)


def test_one_taken_out_of_the_middle_leaves_the_others_as_if_it_had_never_been():
    parts = [project(seed) for seed in (0, 2, 5)]
    without = dense(compose([parts[0], parts[2]]))
    assert_close(without, dense(compose([part for i, part in enumerate(parts) if i != 1])))
    together, name = compose(parts), next(iter(without))
    assert not torch.allclose(dense(together)[name], without[name], atol=1e-4)


def test_the_order_plays_no_part_where_projections_read_nothing_in_common():
    def along(axis: int) -> Erasure:
        basis = torch.eye(4)[axis : axis + 1]
        delta = LowRankDelta(-torch.ones(2, 4) @ basis.T, basis, basis)
        return Erasure({"unet.a": delta})

    there, back = (compose(list(order)) for order in ((along(0), along(2)), (along(2), along(0))))
    assert_close(dense(there), dense(back))
