"""Balance beside brute force on stacked inputs, and what its method promises."""

import numpy as np
import pytest
import torch
from test_learned import BUILDERS, build_task

from erase.core.balance import (
    EVEN,
    RIDGE,
    SPREAD,
    WEIGHTS,
    Heard,
    Trial,
    evened,
    least_squares,
    left_of_groups,
    ordered_axes,
    searched,
)
from erase.core.delta import LowRankDelta
from erase.core.projection import Projection
from erase.core.subspace import SubspaceFitter
from erase.methods import get_method
from erase.methods.balance import BalanceConfig, balance
from erase.models.family import STATES
from erase.tasks.diffusion.hearing import hearing

D, POSITIONS, EACH = 9, 2, 12


def drawn(seed: int, groups: int, shift: float = 0.0) -> torch.Tensor:
    """Inputs [groups, EACH, POSITIONS, D] that differ most in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(groups, EACH, POSITIONS, D, generator=generator, dtype=torch.float64)
    apart = torch.randn(groups, 1, 1, D, generator=generator, dtype=torch.float64)
    return normal * torch.logspace(0, -1, D, dtype=torch.float64) + shift * apart


FORGET, RETAIN = drawn(1, 3, 2.0), drawn(2, 1)
GRAM = torch.diag(torch.linspace(0.5, 2, D, dtype=torch.float64))


def heard(forget: torch.Tensor, retain: torch.Tensor) -> Heard:
    fitters = SubspaceFitter(D), SubspaceFitter(D)
    for fitter, groups in zip(fitters, (forget, retain), strict=True):
        for place, rows in enumerate(groups):
            fitter.update(rows, str(place))
    return Heard(*(fitter.fit() for fitter in fitters))


WHOLE = heard(FORGET, RETAIN)
GAPS = FORGET.mean(1) - RETAIN.mean((0, 1))


@pytest.mark.parametrize("weight", [0.1, 3.0])
def test_p_is_the_least_squares_solution_of_the_stacked_inputs(weight):
    count, kept = 3 * EACH * POSITIONS, EACH * POSITIONS
    inputs, others = FORGET.flatten(0, 2), RETAIN.flatten(0, 2)
    wanted = GAPS[:, None].expand_as(FORGET).flatten(0, 2)
    normal = weight * inputs.T @ inputs / count + others.T @ others / kept
    ridge = RIDGE * normal.diagonal().mean()
    rows = torch.cat([(weight / count) ** 0.5 * inputs, kept**-0.5 * others,
                      ridge**0.5 * torch.eye(D).double()])  # fmt: skip
    answers = torch.cat([(weight / count) ** 0.5 * wanted, torch.zeros(kept + D, D).double()])
    found = np.linalg.lstsq(rows.numpy(), answers.numpy(), rcond=None)[0].T
    assert np.allclose(least_squares(WHOLE, weight).numpy(), found, atol=1e-9)


@pytest.mark.parametrize("left", [0.05, 0.5])
def test_the_strength_leaves_the_share_that_was_asked_for_and_tells_what_that_moves(left):
    change = least_squares(WHOLE, 1.0)
    found = Trial(WHOLE, GAPS, GRAM, left).setting(change, 1.0)
    taken = found.strength * FORGET @ change.T
    along = (taken @ GRAM * GAPS[:, None]).sum(-1) / (GAPS @ GRAM * GAPS).sum((1, 2)).mean()
    assert float(along.sum(2).mean()) == pytest.approx(1 - left)
    moved = found.strength * RETAIN @ change.T
    about = RETAIN - RETAIN.mean((0, 1))
    energies = [float((part @ GRAM * part).sum()) for part in (moved, about)]
    assert found.moved == pytest.approx(energies[0] / energies[1])
    lost = float((taken @ GRAM * taken).sum() / (GAPS @ GRAM * GAPS).sum()) / EACH
    assert found.spread == pytest.approx(lost - (1 - left) ** 2)
    assert found.cost == found.moved + SPREAD * found.spread


def test_a_greater_weight_takes_more_and_moves_the_retained_further():
    def along_and_moved(weight: float) -> tuple[float, float]:
        found = Trial(WHOLE, GAPS, GRAM, 0.0).setting(least_squares(WHOLE, weight), weight)
        return 1 / found.strength, found.moved

    (little, near), (much, far) = map(along_and_moved, (0.05, 5.0))
    assert little < much
    assert near < far


def test_the_search_finds_the_cheapest_weight_and_refuses_sets_that_are_one():
    held = heard(drawn(3, 3, 2.0), drawn(4, 1))
    trial = Trial(WHOLE, GAPS, GRAM, 0.2)
    best = searched(WHOLE, trial)
    for other in WEIGHTS:
        assert trial.setting(least_squares(WHOLE, other), other).cost >= best.cost
    assert searched(WHOLE, Trial(held, GAPS, GRAM, 0.2)).strength > 0
    alike = heard(RETAIN, RETAIN)
    with pytest.raises(ValueError, match="Nothing tells the forget set"):
        searched(alike, Trial(alike, alike.gaps, GRAM, 0.2))


def cut_to(rank: int, change: torch.Tensor, whole: Heard) -> Projection:
    axes = ordered_axes(change, whole)[:, :rank]
    return Projection(axes, axes.T @ change)


def test_a_cut_p_is_the_nearest_of_its_rank_on_what_is_read():
    change = least_squares(WHOLE, 1.0)
    whole = cut_to(D, change, WHOLE)
    assert torch.allclose(whole.left @ whole.right, change)
    inputs = torch.cat([FORGET.flatten(0, 2) / (3 * EACH * POSITIONS) ** 0.5,
                        RETAIN.flatten(0, 2) / (EACH * POSITIONS) ** 0.5])  # fmt: skip
    singular = torch.linalg.svdvals(change @ inputs.T)
    for rank in (1, 2):
        cut = cut_to(rank, change, WHOLE)
        error = ((change - cut.left @ cut.right) @ inputs.T).norm()
        assert cut.rank == rank
        assert float(error) == pytest.approx(float(singular[rank:].norm()), rel=1e-3)


@pytest.mark.parametrize("rank", [3, D])
def test_evened_each_group_loses_the_same_share_of_its_gaps(rank):
    far = torch.tensor([0.3, 1.0, 2.0])[:, None, None, None]
    whole = heard(FORGET * far, RETAIN)
    trial = Trial(whole, whole.gaps, GRAM, 0.2)
    cut = cut_to(rank, least_squares(whole, 0.1), whole)
    found = trial.setting(cut.left @ cut.right, 0.1)
    uneven = found.strength * trial.lost(cut)
    assert float((uneven - 0.8).abs().max()) > 0.1
    even = evened(whole, trial, cut, found)
    assert torch.equal(even.left, cut.left)
    assert torch.allclose(trial.lost(even), torch.full((3,), 0.8).double(), atol=EVEN)


def test_groups_that_are_one_lose_what_they_can_and_stay_finite():
    twins = FORGET[[0, 0, 1]] * torch.tensor([1.0, 1.0, -1.0])[:, None, None, None]
    whole = heard(twins, RETAIN)
    trial = Trial(whole, whole.gaps, GRAM, 0.2)
    cut = cut_to(1, least_squares(whole, 1.0), whole)
    even = evened(whole, trial, cut, trial.setting(cut.left @ cut.right, 1.0))
    assert even.right.isfinite().all()


def test_what_is_left_of_a_group_is_all_without_a_change_and_little_after_it():
    none = Projection(*torch.zeros(2, D, D).double())
    assert torch.allclose(left_of_groups(WHOLE, none, GRAM), torch.ones(3).double())
    all_of_it = Projection(torch.eye(D).double(), least_squares(WHOLE, 1e4))
    assert float(left_of_groups(WHOLE, all_of_it, GRAM).max()) < 0.2


def test_positions_are_weighed_by_the_slope_of_the_denoisers_answer(tiny_task):
    weights = hearing(tiny_task, 4)[STATES]
    assert weights.shape == (tiny_task.readings([""])[STATES].shape[1],)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights.min()) > 0
    assert torch.equal(weights, hearing(tiny_task, 4)[STATES])


def test_the_method_tells_what_it_found_and_is_a_lora_that_loses_p(tiny_task):
    erasure = balance(tiny_task, BalanceConfig(heard=4))
    found = erasure.recipe["balance"][STATES]
    assert found["left_by_concept"].keys() == {"ghost"}
    assert found["rank"] == next(iter(erasure.deltas.values())).rank
    for name, delta in erasure.deltas.items():
        assert isinstance(delta, LowRankDelta)
        weight = tiny_task.editable()[name].detach()
        assert torch.allclose(delta.up, -weight @ delta.input_basis.T, atol=1e-5)


def test_less_that_may_be_left_moves_the_retained_further(tiny_task):
    moved = [
        balance(tiny_task, BalanceConfig(left=left, heard=0)).recipe["balance"][STATES]["moved"]
        for left in (0.5, 0.1)
    ]
    assert moved[0] < moved[1]


def test_without_hearing_no_denoiser_is_needed():
    method = get_method("balance")
    assert method.text_alone(BalanceConfig(heard=0))
    assert not method.text_alone(BalanceConfig())


def test_places_whose_prompts_differ_in_length_are_read_without_positions():
    task = build_task(BUILDERS["dreamlite"](), ("a {concept}", "a photo of a {concept} at home"))
    assert hearing(task, 4) == {}
    assert balance(task, BalanceConfig()).deltas


def test_a_single_group_is_even_at_the_strength_that_was_found():
    one = heard(FORGET[:1], RETAIN)
    trial = Trial(one, one.gaps, GRAM, 0.2)
    cut = cut_to(3, least_squares(one, 1.0), one)
    found = trial.setting(cut.left @ cut.right, 1.0)
    even = evened(one, trial, cut, found)
    assert torch.allclose(even.right, found.strength * cut.right, atol=EVEN)
