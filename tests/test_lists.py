"""SPEED and OCE beside their formulas, as the papers and NumPy have them."""

import numpy as np
import pytest
import torch
from test_learned import BUILDERS, build_task

from erase.core.delta import LowRankDelta, truncate_delta
from erase.core.subspace import subspace_of
from erase.methods.oce import OCEConfig, concept_means, nearest_orthogonal, oce, rotation
from erase.methods.speed import (
    Problem,
    SPEEDConfig,
    cut,
    landmarks,
    least_axis,
    null_space_edit,
    rows_moved,
    share_moved,
    speed,
    summed,
)
from erase.tasks.diffusion.places import TEXT

OUT, D = 10, 14
THRESHOLD, SCALE = 0.6, 0.5


def drawn(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


WEIGHT, TOKENS, WANTED, FIXED = drawn(OUT, D), drawn(3, D), drawn(4, D)[:3], 0.3 * drawn(2, D)
KEPT = drawn(30, D) * torch.logspace(0, -2, D, dtype=torch.float64)
CONFIG = SPEEDConfig(threshold=THRESHOLD, retain_scale=SCALE)


def kept_and_copies(weight, alone, kept):
    """The filter and the directed augmentation of the authors' code, as rows."""
    sizes = np.linalg.norm(kept @ alone.T, axis=1)
    kept = kept[sizes > sizes.mean()]
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(10, len(kept), generator=generator, dtype=torch.float64).numpy()
    axis = np.linalg.svd(weight, full_matrices=False)[2][-1]
    axis *= np.sign(axis[np.abs(axis).argmax()])
    copies = (kept + steps[:, :, None] * axis).reshape(-1, D)
    sizes = np.linalg.norm(copies @ alone.T, axis=1)
    return np.concatenate([kept, copies[sizes > sizes.mean()]])


def speed_formula(weight, tokens, wanted, kept, fixed):
    """The change of a weight by SPEED's closed form, and the axes that it is to leave alone."""
    identity, fixed = np.eye(D), fixed.T
    target, anchor = tokens.T @ tokens / len(tokens), wanted.T @ tokens / len(tokens)
    alone = weight @ (anchor - target) @ np.linalg.inv(identity + target)
    rows = kept_and_copies(weight, alone, kept)
    axes, energies, _ = np.linalg.svd(rows.T @ rows / len(rows))
    free = axes[:, energies < THRESHOLD]
    project = free @ free.T
    inverse = np.linalg.inv(target @ project + SCALE * identity)
    gap = np.linalg.inv(fixed.T @ project @ inverse @ fixed)
    bound = identity - inverse @ fixed @ gap @ fixed.T @ project
    change = weight @ (anchor - target) @ project @ bound @ inverse
    return change, axes[:, energies >= THRESHOLD]


def problem(
    tokens: torch.Tensor = TOKENS, wanted: torch.Tensor = WANTED, kept: torch.Tensor = KEPT
) -> Problem:
    return Problem(*summed(tokens, wanted - tokens), kept, FIXED)


def counting(weight: torch.Tensor, problem: Problem, config: SPEEDConfig) -> torch.Tensor:
    return rows_moved(weight, weight @ problem.change.T, problem, config, 0)


def edited(problem: Problem, config: SPEEDConfig = CONFIG) -> tuple[torch.Tensor, torch.Tensor]:
    counted = subspace_of(counting(WEIGHT, problem, config))
    return WEIGHT @ problem.change.T, null_space_edit(problem, counted, config)


def relative(found, wanted) -> float:
    found, wanted = np.asarray(found), np.asarray(wanted)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def test_speed_is_its_formula_and_keeps_what_it_promises():
    up, down = edited(problem())
    arrays = (part.numpy() for part in (WEIGHT, TOKENS, WANTED, KEPT, FIXED))
    wanted, held = speed_formula(*arrays)
    assert up.shape[1] == len(down) == len(TOKENS)
    assert 0 < held.shape[1] < D
    assert relative(up @ down, wanted) < 1e-6
    size = np.linalg.norm(wanted)
    for kept in (torch.tensor(held), FIXED.T):  # in float32 too, as it is written
        assert (up.float() @ down.float() @ kept.float()).norm() < 1e-6 * size * kept.norm()


def test_speed_of_more_tokens_than_dimensions_is_the_same_and_cut_it_keeps_its_promises():
    many = TOKENS.repeat(9, 1), WANTED.repeat(9, 1)
    up, down = edited(problem(*many))
    few = edited(problem())
    assert relative(up @ down, few[0] @ few[1]) < 1e-6
    short, lost = cut(LowRankDelta(few[0].float(), few[1].float()), 2)
    assert short.rank == 2
    assert 0 < lost < 1
    assert (short.dense().double() @ FIXED.T).norm() < 1e-6 * short.dense().norm() * FIXED.norm()


@pytest.mark.parametrize("threshold", [THRESHOLD, 1e-2, 1e-3])
def test_speed_holds_what_is_retained_in_float32_to_the_same_change(threshold):
    config = SPEEDConfig(threshold=threshold, retain_scale=SCALE, filter=False, augment=0)
    up, down = edited(problem(kept=KEPT.float()), config)
    whole = edited(problem(), config)
    assert relative(up @ down, whole[0] @ whole[1]) < 1e-5


def test_speed_is_refused_where_no_direction_may_change():
    with pytest.raises(ValueError, match="leaves no direction"):
        edited(problem(), SPEEDConfig(threshold=1e-12))


def test_speed_is_refused_where_what_stays_leaves_nothing_of_it(tiny_task):
    with pytest.raises(ValueError, match="centres 1000 hold all of the empty prompt"):
        speed(tiny_task, SPEEDConfig(centres=1000))


def test_landmarks_are_centres_of_what_lies_together():
    empty = torch.cat([drawn(1, 5), *(place + 1e-3 * drawn(6, 5) for place in (0.0, 9.0, 18.0))])
    found = landmarks(empty, 3)
    assert torch.equal(found[:1], empty[:1])
    assert torch.allclose(found[1:].mean(1), torch.tensor([0.0, 9.0, 18.0]).double(), atol=0.01)
    assert torch.equal(landmarks(empty[:1], 3), empty[:1])


@pytest.mark.parametrize("outputs", [OUT, D + 5])
def test_oce_is_its_formula_and_orthogonal(outputs):
    moment = (KEPT.T @ KEPT / len(KEPT) + 0.1 * torch.eye(D)).double()
    weight = drawn(outputs, D)
    found = rotation(weight, TOKENS, WANTED, weight @ moment @ weight.T, 3.0)
    weight, moment, found = weight.numpy(), moment.numpy(), found.numpy()
    bases = [np.linalg.qr(weight @ rows.numpy().T)[0] for rows in (TOKENS, WANTED)]
    erased, guide = (basis @ basis.T for basis in bases)
    retained = weight @ moment @ weight.T
    scale = 3.0 * np.trace(erased @ retained) / len(TOKENS)
    left, _, right = np.linalg.svd(-scale * erased @ (np.eye(outputs) - guide) + retained)
    assert relative(found @ weight, left @ right @ weight) < 1e-6
    assert relative(found @ found.T, np.eye(outputs)) < 1e-6


@pytest.mark.parametrize("least", [1.0, 1e-4, 1e-8, 0.0])
def test_the_nearest_orthogonal_matrix_is_of_the_singular_vectors(least):
    left, _, right = torch.linalg.svd(drawn(OUT, OUT))
    sizes = torch.linspace(9, 1, OUT).double()
    sizes[-1] = least
    found = nearest_orthogonal(left * sizes @ right)
    assert relative(found @ found.T, torch.eye(OUT)) < 1e-6
    assert relative(found @ right[:-1].T, left[:, :-1]) < 1e-6
    assert not least or relative(found, left @ right) < 1e-6


def test_a_lone_concept_apart_from_its_anchor_is_turned_round_by_oce():
    left, _, _ = torch.linalg.svd(WEIGHT)
    forget, anchor = (torch.linalg.pinv(WEIGHT) @ left[:, :2]).T.split(1)
    turned = rotation(WEIGHT, forget, anchor, WEIGHT @ WEIGHT.T, 1e6) @ left[:, :2]
    assert relative(turned, left[:, :2] * torch.tensor([-1.0, 1.0])) < 1e-6


@pytest.mark.parametrize("method", [speed, oce])
def test_the_recipe_tells_what_the_whole_retain_list_lost(method, tiny_task):
    erasure = method(tiny_task, {speed: SPEEDConfig, oce: OCEConfig}[method]())
    assert erasure.recipe["retained_moved"].keys() == erasure.deltas.keys()
    assert 0 < max(erasure.recipe["retained_moved"].values()) < 2


def test_speed_tells_what_the_filter_lets_count_beside_the_whole_list(tiny_task):
    told = speed(tiny_task, SPEEDConfig()).recipe
    assert told["filtered_moved"].keys() == told["retained_moved"].keys()
    for name, share in told["retained_moved"].items():
        assert 0 < told["filtered_moved"][name] != share
    assert "filtered_moved" not in speed(tiny_task, SPEEDConfig(filter=False)).recipe


def test_the_filter_keeps_those_that_the_edit_alone_moves_most():
    alone = WEIGHT @ problem().change.T @ problem().alone
    sizes = (KEPT @ alone.T).norm(dim=1)
    far = KEPT[sizes >= sizes.mean()]
    for weight in (WEIGHT, torch.cat([WEIGHT, WEIGHT])):  # also of more outputs than inputs
        found = counting(weight, problem(), SPEEDConfig(augment=0))
        assert torch.allclose(found.T @ found / len(found), far.T @ far / len(far))


@pytest.mark.parametrize("outputs", [OUT, D + 5])
def test_those_that_count_have_the_moment_of_tokens_and_copies_of_which_none_is_made(outputs):
    weight, known = drawn(outputs, D), problem()
    alone = (weight @ known.change.T @ known.alone).numpy()
    rows = kept_and_copies(weight.numpy(), alone, KEPT.numpy())
    found = counting(weight, known, CONFIG)
    assert len(found) <= len(KEPT) + 1
    assert relative(found.T @ found / len(found), rows.T @ rows / len(rows)) < 1e-6


@pytest.mark.parametrize("outputs", [OUT, D, D + 5])
def test_the_least_axis_is_the_weights_own_also_where_some_of_it_is_dead(outputs):
    weight = drawn(outputs, D)
    last = torch.linalg.svd(weight, full_matrices=False)[2][-1]
    assert abs(float(least_axis(weight) @ last)) == pytest.approx(1, abs=1e-9)
    weight[-2:] = 0
    axis = least_axis(weight)
    assert float(axis.norm()) == pytest.approx(1)
    if outputs <= D:
        assert float((weight @ axis).norm()) < 1e-9 * float(weight.norm())


def test_how_far_inputs_move_is_told_by_their_moment():
    change = LowRankDelta(drawn(OUT, 2).float(), drawn(2, D).float())
    for kept in (KEPT, KEPT[: D - 1]):  # of fewer than dimensions no moment is made
        moved, whole = ((kept @ made.T).norm() for made in (change.dense().double(), WEIGHT))
        found = share_moved(WEIGHT, change, subspace_of(kept))
        assert found == pytest.approx(float(moved / whole), abs=1e-6)


def test_how_far_a_rotation_moves_what_is_retained_is_told_without_another_product(tiny_task):
    erasure = oce(tiny_task, OCEConfig())
    ((site, names),) = tiny_task.sites(TEXT).items()
    kept = concept_means(tiny_task, OCEConfig())[site][2]
    for name in names:
        found = share_moved(
            tiny_task.editable()[name].detach().double(), erasure.deltas[name], kept
        )
        assert erasure.recipe["retained_moved"][name] == pytest.approx(found, abs=2e-6)


def test_oce_takes_the_mean_of_what_differs_also_of_prompts_of_several_lengths():
    task = build_task(BUILDERS["dreamlite"](), ("a {concept}", "a photo of a {concept} at home"))
    (site,), prompts = task.sites(TEXT), task.prompts.forget
    read = [task.redirected_readings([prompt])[site] for prompt in prompts]
    assert len(read[0][0]) < len(read[1][0])
    tokens, wanted = map(torch.cat, zip(*read, strict=True))
    differs = (tokens != wanted).any(1)
    means = concept_means(task, OCEConfig())[site]
    for found, rows in zip(means, (tokens, wanted), strict=False):
        assert torch.allclose(found, rows[differs].double().mean(0)[None])


def test_a_cut_rotation_is_a_lora_that_tells_its_error(tiny_task):
    whole, short = oce(tiny_task, OCEConfig()), oce(tiny_task, OCEConfig(rank=2))
    for name, delta in short.deltas.items():
        full = whole.deltas[name].dense()
        assert torch.equal(delta.dense(), truncate_delta(whole.deltas[name], 2).dense())
        error = float((delta.dense() - full).norm() / full.norm())
        assert short.recipe["left_out"][name] == pytest.approx(error, abs=2e-6)
