import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from erase.core.activations import capture_inputs
from erase.core.projection import (
    RIDGE,
    Projection,
    contrastive,
    discriminative,
    leace,
    mean_difference,
    null_space,
    oblique,
    orthogonal,
)
from erase.core.subspace import SubspaceFitter, gram, subspace_of
from erase.methods.projection import DEFAULTS
from erase.methods.speed import strong_basis


def activations(count: int, dimension: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ mixing


def fit(samples: torch.Tensor, parts: int = 4):
    fitter = SubspaceFitter(samples.shape[-1])
    for part in samples.chunk(parts):
        fitter.update(part)
    return fitter.fit()


@pytest.mark.parametrize("count", [2, 7, 200])
def test_streamed_moments_give_the_svd_of_the_stacked_activations(count):
    samples = activations(count, 12, 12, 0)
    subspace = fit(samples)
    _, singular, right = torch.linalg.svd(samples, full_matrices=False)
    basis, energies = subspace.axes
    assert torch.allclose(energies, singular**2)
    assert torch.allclose((right @ basis).abs(), torch.eye(len(singular)).double(), atol=1e-8)
    assert torch.allclose(subspace.moment(), samples.T @ samples / count)
    share = energies / energies.sum()
    scaled = basis * (5.0 * share / (4.0 * share + 1)) @ basis.T
    left, right = subspace.scaled(5.0)
    assert torch.allclose(left @ right, scaled)
    inputs = activations(3, 12, 12, 1).T
    assert torch.allclose(subspace.scale(inputs, 5.0), scaled @ inputs)
    assert torch.allclose(subspace.means[0, 0], samples.mean(0))


@pytest.mark.parametrize("count", [2, 7, 200])
def test_a_subspace_tells_the_energy_of_what_is_made_of_it_and_its_strong_directions(count):
    samples, matrix = activations(count, 12, 12, 0), activations(5, 12, 12, 1)
    subspace = subspace_of(samples)
    assert (subspace.gram is None) == (count < 12)
    assert torch.allclose(gram(samples), samples.T @ samples)
    energy = (samples @ matrix.T).square().sum() / count
    assert torch.allclose(subspace.energy(matrix), energy)
    basis, energies = subspace.axes
    for strong in range(len(energies)):
        found = strong_basis(subspace, float(energies[strong]) * 1.001 / count)
        assert found.shape == (12, strong)
        wanted = basis[:, :strong]
        assert torch.allclose(found @ found.T, wanted @ wanted.T, atol=1e-8)


def test_the_scaled_projection_is_kodges():
    forget, retain = activations(90, 10, 3, 1), activations(80, 10, 10, 2)
    weight = torch.randn(5, 10)
    up, down = discriminative(fit(forget), fit(retain), 3.0, 100.0).edit(weight)

    def projection(samples, alpha):
        left, singular, _ = torch.linalg.svd(samples.T, full_matrices=False)
        share = singular**2 / (singular**2).sum()
        return left @ torch.diag(alpha * share / ((alpha - 1) * share + 1)) @ left.T

    removed = projection(forget, 3.0) @ (torch.eye(10).double() - projection(retain, 100.0))
    expected = weight.double() @ (torch.eye(10).double() - removed).T
    assert torch.allclose(weight + up @ down, expected, atol=1e-9)


def test_after_a_full_projection_nothing_of_the_forget_space_passes():
    forget, weight = activations(50, 16, 3, 3), torch.randn(5, 16)
    up, down = orthogonal(fit(forget).axes[0]).edit(weight)
    assert ((weight.double() + up @ down) @ forget.T).abs().max() < 1e-5


def test_the_null_space_variant_keeps_retained_inputs():
    forget, retain, weight = (
        activations(50, 16, 3, 4),
        activations(60, 16, 8, 5),
        torch.randn(5, 16),
    )
    up, down = null_space(fit(forget), fit(retain).axes[0], rank=3).edit(weight)
    assert ((up @ down) @ retain.T).abs().max() < 1e-5
    assert ((up @ down) @ forget.T).abs().max() > 1e-2


def test_edits_are_low_rank_and_an_empty_set_is_refused():
    up, down = orthogonal(fit(activations(50, 16, 2, 6)).axes[0]).edit(torch.randn(5, 16))
    assert up.shape == (5, 2)
    assert down.shape == (2, 16)
    with pytest.raises(ValueError, match="No activations"):
        SubspaceFitter(4).fit()


@pytest.mark.parametrize("space", [mean_difference, oblique])
def test_means_coincide_after_projection_and_a_linear_probe_is_at_chance(space):
    forget, retain = activations(300, 8, 8, 7) + 2.0, activations(300, 8, 8, 8)
    projection = space(fit(forget), fit(retain), 1)
    weight = torch.eye(8).double()
    up, down = projection.edit(weight)
    forget, retain = ((weight + up @ down) @ part.T for part in (forget, retain))
    forget, retain = forget.T, retain.T
    assert (forget.mean(0) - retain.mean(0)).abs().max() < 1e-5
    labels = [1] * 300 + [0] * 300
    rows = torch.cat([forget, retain]).numpy()
    # The best constant is what is left of the best linear probe once the means coincide.
    assert LinearRegression().fit(rows, labels).score(rows, labels) < 1e-9


def test_leace_is_its_formula_and_only_strength_1_leaves_a_linear_probe_at_chance():
    """LEACE's theorem 4.3 in NumPy; balanced Gaussian classes, as its own tests have them."""
    rng, mixing = np.random.default_rng(0), np.random.default_rng(1).normal(size=(16, 16))
    forget, retain = (rng.normal(size=(2000, 16)) @ mixing + shift for shift in (4.0, 0.0))
    rows, labels = np.concatenate([forget, retain]), np.repeat([1, 0], 2000)
    values, vectors = np.linalg.eigh(np.cov(rows.T, bias=True))
    whiten, back = (vectors * values**power @ vectors.T for power in (-0.5, 0.5))
    cross = whiten @ ((rows - rows.mean(0)).T @ (labels - 0.5))[:, None]
    wanted = back @ (cross @ cross.T / (cross.T @ cross)) @ whiten
    spaces = fit(torch.tensor(forget)), fit(torch.tensor(retain))

    def found(projection: Projection, strength: float) -> float:
        left = rows - strength * rows @ (projection.left @ projection.right).numpy().T
        probe = LogisticRegression(max_iter=1000).fit(left, labels)
        return balanced_accuracy_score(labels, probe.predict(left))

    ours, theirs = leace(*spaces), oblique(*spaces, 1)
    assert np.abs((ours.left @ ours.right).numpy() - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert max(abs(found(space, 1.0) - 0.5) for space in (ours, theirs)) < 0.02
    assert min(found(space, 1.25) for space in (ours, theirs)) > 0.7
    assert DEFAULTS["leace"][1] == 1.0


def test_several_groups_lose_a_direction_each():
    fitter = SubspaceFitter(8)
    for group, seed in (("a", 1), ("b", 2)):
        fitter.update(activations(50, 8, 8, seed) + seed, group)
    retain = fit(activations(60, 8, 8, 3))
    forget = fitter.fit()
    for space in (mean_difference, oblique):
        projection = space(forget, retain, 4)
        assert projection.rank == 2
        difference = (forget.means - retain.means)[:, 0].T
        gone = projection.left @ (projection.right @ difference)
        assert torch.allclose(gone, difference, atol=1e-5)


def test_the_oblique_projection_moves_retained_inputs_less_than_any_other():
    forget, retain = activations(300, 8, 8, 7) + 2.0, activations(300, 8, 8, 8)
    best = oblique(fit(forget), fit(retain), 1)
    assert torch.allclose(best.right @ best.left, torch.ones(1, 1).double())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = best.right + 0.3 * torch.randn(best.right.shape, generator=generator).double()
        other = other / (other @ best.left)
        assert (retain @ best.right.T).norm() < (retain @ other.T).norm()


def test_means_that_differ_by_position_all_coincide_at_full_rank():
    offsets = torch.randn(3, 8, generator=torch.Generator().manual_seed(5)).double()
    forget = activations(300, 8, 8, 7).view(100, 3, 8) + offsets
    retain = activations(300, 8, 8, 8).view(100, 3, 8)
    for space in (mean_difference, oblique):
        projection = space(fit(forget), fit(retain), 3)
        moved = (forget.mean(0) - retain.mean(0)) @ (projection.left @ projection.right).T
        assert torch.allclose(moved, forget.mean(0) - retain.mean(0), atol=1e-8)
        assert space(fit(forget), fit(retain), 2).rank == 2


def test_a_strength_of_two_reflects():
    forget, weight = activations(50, 16, 3, 3), torch.randn(5, 16)
    up, down = orthogonal(fit(forget).axes[0]).edit(weight, strength=2.0)
    edited = weight.double() + up @ down
    assert torch.allclose(edited @ forget.T, -weight.double() @ forget.T)


def test_truncation_is_the_nearest_matrix_of_its_rank():
    projection = discriminative(
        fit(activations(90, 10, 6, 1)), fit(activations(80, 10, 10, 2)), 3.0, 100.0
    )
    whole = projection.left @ projection.right
    left, singular, right = torch.linalg.svd(whole)
    nearest = left[:, :2] * singular[:2] @ right[:2]
    cut = projection.truncated(2)
    assert cut.rank == 2
    assert torch.allclose(cut.left @ cut.right, nearest)


def test_of_a_forget_space_within_the_retain_space_nothing_is_removed():
    samples = activations(50, 16, 3, 3)
    assert null_space(fit(samples[:20]), fit(samples).axes[0], 2).rank == 0


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, (2, 3), padding="same"),
    ],
)
def test_rows_are_what_the_weight_multiplies(layer):
    shape = (5, 6) if isinstance(layer, nn.Linear) else (2, 3, 8, 8)
    heard = []
    with capture_inputs({"layer": layer}, lambda name, rows: heard.append(rows)):
        output = layer(torch.randn(shape))
    by_hand = heard[0] @ layer.weight.flatten(1).T + layer.bias
    if isinstance(layer, nn.Conv2d):
        output = output.flatten(2).transpose(1, 2).reshape(-1, 4)
    assert torch.allclose(by_hand, output, atol=1e-5)


@pytest.mark.parametrize("count", [4, 200])
def test_fitters_that_shared_the_activations_merge_to_the_whole(count):
    samples = activations(count, 12, 12, 0)
    parts = [SubspaceFitter(12).update(part) for part in samples.tensor_split([1, count // 2])]
    whole, merged = fit(samples), parts[0].merge(parts[1]).merge(parts[2]).fit()
    assert merged.count == whole.count
    assert torch.allclose(merged.axes[1], whole.axes[1])
    assert torch.allclose(merged.means, whole.means)


def test_the_contrastive_projection_takes_out_the_largest_generalized_eigenvectors():
    forget, retain = activations(300, 8, 8, 7) + 0.5, activations(300, 8, 8, 8)
    projection = contrastive(fit(forget), fit(retain), 3)
    about = forget - retain.mean(0)
    energy, kept = about.T @ about / 300, retain.T @ retain / 300
    ridge = RIDGE * kept.diagonal().mean() * torch.eye(8).double()
    kept = kept + ridge
    values, vectors = scipy.linalg.eigh(energy.numpy(), kept.numpy())
    found = (projection.right @ energy @ projection.right.T).diagonal()
    assert torch.allclose(found, torch.from_numpy(values[::-1][:3].copy()))
    assert torch.allclose(projection.right @ projection.left, torch.eye(3).double(), atol=1e-9)
    ridged = torch.cat([retain, (300 * ridge).sqrt()])
    guess = LinearRegression(fit_intercept=False).fit(ridged @ projection.right.T, ridged)
    assert torch.allclose(torch.from_numpy(guess.coef_), projection.left, atol=1e-9)
    whole = projection.left @ projection.right
    rest = forget @ (torch.eye(8).double() - whole).T
    assert (rest @ torch.from_numpy(vectors[:, -3:].copy())).abs().max() < 1e-9


def test_matrices_that_divide_and_conquer_fails_on_are_solved_too(monkeypatch):
    samples = activations(50, 12, 3, 0)
    basis, energies = fit(samples).axes

    def fails(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    found = fit(samples).axes
    assert torch.allclose(found[1], energies)
    assert torch.allclose(found[0] @ found[0].T, basis @ basis.T)
