import pytest
import torch

from erase.core.subspace import (
    SubspaceFitter,
    discriminative,
    null_space,
    orthogonal,
)


def activations(count: int, dimension: int, rank: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ mixing


def fit(samples: torch.Tensor, parts: int = 4):
    fitter = SubspaceFitter(samples.shape[-1])
    for part in samples.chunk(parts):
        fitter.update(part)
    return fitter.fit()


@pytest.mark.parametrize("count", [7, 200])
def test_streamed_moments_give_the_svd_of_the_stacked_activations(count):
    samples = activations(count, 12, 12, 0)
    subspace = fit(samples)
    _, singular, right = torch.linalg.svd(samples, full_matrices=False)
    assert torch.allclose(subspace.energies, singular**2)
    assert torch.allclose(
        (right @ subspace.basis).abs(), torch.eye(len(singular)).double(), atol=1e-8
    )
    assert torch.allclose(subspace.mean, samples.mean(0))


def test_the_scaled_projection_is_kodges():
    forget, retain = activations(90, 10, 3, 1), activations(80, 10, 10, 2)
    got = discriminative(fit(forget), fit(retain), 3.0, 100.0)

    def projection(samples, alpha):
        left, singular, _ = torch.linalg.svd(samples.T, full_matrices=False)
        share = singular**2 / (singular**2).sum()
        return left @ torch.diag(alpha * share / ((alpha - 1) * share + 1)) @ left.T

    expected = projection(forget, 3.0) @ (torch.eye(10).double() - projection(retain, 100.0))
    assert torch.allclose(got.left @ got.right, expected, atol=1e-9)


def test_after_a_full_projection_nothing_of_the_forget_space_passes():
    forget, weight = activations(50, 16, 3, 3), torch.randn(5, 16)
    up, down = orthogonal(fit(forget).basis).edit(weight)
    assert ((weight.double() + up @ down) @ forget.T).abs().max() < 1e-5


def test_the_null_space_variant_keeps_retained_inputs():
    forget, retain, weight = (
        activations(50, 16, 3, 4),
        activations(60, 16, 8, 5),
        torch.randn(5, 16),
    )
    up, down = null_space(fit(forget), fit(retain), rank=3).edit(weight)
    assert ((up @ down) @ retain.T).abs().max() < 1e-5
    assert ((up @ down) @ forget.T).abs().max() > 1e-2


def test_edits_are_low_rank_and_an_empty_set_is_refused():
    up, down = orthogonal(fit(activations(50, 16, 2, 6)).basis).edit(torch.randn(5, 16))
    assert up.shape == (5, 2)
    assert down.shape == (2, 16)
    with pytest.raises(ValueError, match="No activations"):
        SubspaceFitter(4).fit()
