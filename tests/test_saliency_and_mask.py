import pytest
import torch
from torch import nn

from erase.core.mask import build_mask
from erase.core.saliency import accumulate, fisher_ratio
from erase.erasure.weights import read_mask, write_mask


def random_scores(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 5), "b": (11,), "c": (3, 2, 4)}
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def test_saliency_is_the_magnitude_of_the_signed_sum():
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    batches = [torch.tensor([1.0, 2.0, 0.0]), torch.tensor([-1.0, 1.0, 0.0])]
    scores = accumulate({"w": weight}, ((weight * batch).sum() for batch in batches))
    assert scores["w"].tolist() == [0.0, 3.0, 0.0]
    assert weight.grad is None


def test_saliency_ignores_gradients_that_were_there_before():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.full((2,), 9.0)
    assert accumulate({"w": weight}, [weight.sum()])["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("losses", [[], [torch.tensor(float("nan"), requires_grad=True)]])
def test_saliency_refuses_an_empty_forget_set_and_broken_losses(losses):
    with pytest.raises(ValueError, match=r"empty|not finite"):
        accumulate({"w": nn.Parameter(torch.ones(1))}, losses)


@pytest.mark.parametrize("density", [0.01, 0.1, 0.29, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("selection", ["top", "bottom", "random", "random_per_layer"])
def test_exactly_int_n_density_are_kept(density, selection):
    mask = build_mask(random_scores(), density, selection)
    assert mask.kept == int(mask.total * density)


@pytest.mark.parametrize("scores", [torch.zeros(10), torch.ones(10), torch.tensor([0.0, -0.0] * 5)])
def test_ties_are_kept_in_order_until_the_count_is_reached(scores):
    mask = build_mask({"a": scores[:4], "b": scores[4:]}, 0.5)
    assert mask.tensors["a"].all()
    assert mask.tensors["b"].tolist() == [True] + [False] * 5


def test_top_keeps_what_a_full_sort_keeps():
    scores = {name: score * 10.0 ** (5 * score) for name, score in random_scores(1).items()}
    flat = torch.cat([score.flatten() for score in scores.values()])
    mask = build_mask(scores, 0.3)
    kept = torch.cat([m.flatten() for m in mask.tensors.values()])
    assert flat[kept].min() > flat[~kept].max()


def test_bottom_is_the_complement_of_top_at_one_half():
    scores = {"a": torch.rand(20)}
    top, bottom = build_mask(scores, 0.5), build_mask(scores, 0.5, "bottom")
    assert (top.tensors["a"] ^ bottom.tensors["a"]).all()


def test_random_per_layer_keeps_as_many_a_tensor_as_top():
    scores = random_scores()
    top, control = build_mask(scores, 0.4), build_mask(scores, 0.4, "random_per_layer", seed=1)
    assert {n: m.sum() for n, m in top.tensors.items()} == {
        n: m.sum() for n, m in control.tensors.items()
    }
    assert any((top.tensors[name] != control.tensors[name]).any() for name in scores)


def test_none_masks_nothing():
    assert build_mask(random_scores(), 0.1, "none").kept == 70


@pytest.mark.parametrize("density", [0, -0.1, 1.1])
def test_density_outside_its_range_is_refused(density):
    with pytest.raises(ValueError, match="density"):
        build_mask(random_scores(), density)


@pytest.mark.parametrize("choice", ["selection", "scope"])
def test_a_rule_that_is_not_known_is_refused_and_not_taken_for_another(choice):
    with pytest.raises(ValueError, match=f"{choice} is 'tpo'; choose one of '"):
        build_mask(random_scores(), 0.5, **{choice: "tpo"})


def test_an_estimator_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="estimator is 'zzz'; choose one of 'signed_sum'"):
        accumulate({}, [], "zzz")


def test_saved_masks_take_a_bit_a_weight_and_come_back_equal(tmp_path):
    mask = build_mask({"a": torch.rand(1000, 33), "b": torch.rand(7)}, 0.5)
    made_for = {"base": "b1", "forget set": "f1"}
    write_mask(mask, tmp_path / "mask.safetensors", made_for)
    back = read_mask(tmp_path / "mask.safetensors", made_for)
    assert all(torch.equal(mask.tensors[name], back.tensors[name]) for name in mask.tensors)
    assert (tmp_path / "mask.safetensors").stat().st_size < 33_000 / 8 + 600
    for name in made_for:
        with pytest.raises(ValueError, match=f"made for another {name};"):
            read_mask(tmp_path / "mask.safetensors", made_for | {name: "other"})
    (tmp_path / "text").write_text("not a mask")
    with pytest.raises(ValueError, match="is not a mask"):
        read_mask(tmp_path / "text", made_for)


def test_each_estimator_folds_the_gradients_its_own_way():
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    batches = [torch.tensor([1.0, 2.0, 0.0]), torch.tensor([-1.0, 1.0, 0.0])]
    scores = {
        estimator: accumulate({"w": weight}, ((weight * b).sum() for b in batches), estimator)["w"]
        for estimator in ("signed_sum", "abs_sum", "fisher")
    }
    assert {name: score.tolist() for name, score in scores.items()} == {
        "signed_sum": [0.0, 3.0, 0.0],
        "abs_sum": [2.0, 3.0, 0.0],
        "fisher": [2.0, 5.0, 0.0],
    }


def test_the_fisher_ratio_orders_by_forget_over_retain():
    forget, retain = torch.tensor([4.0, 1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 0.0, 0.0])
    ratio = fisher_ratio({"w": forget}, {"w": retain})["w"]
    assert ratio.argsort().tolist() == [2, 1, 0, 3]
    assert ratio[2] == 0


@pytest.mark.parametrize("selection", ["top", "bottom", "random", "random_per_layer"])
def test_layer_scope_keeps_the_share_within_each_tensor(selection):
    mask = build_mask(random_scores(), 0.4, selection, scope="layer")
    for kept in mask.tensors.values():
        assert int(kept.sum()) == int(0.4 * kept.numel())
