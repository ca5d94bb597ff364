import math
from dataclasses import asdict, replace

import pytest
import torch
from hosts import build_digits_task, build_tiny_pipeline, build_tiny_task
from test_erasure import make_erasure

from erase.core.delta import DenseDelta, LowRankDelta, SparseDelta, compose_deltas, truncate_delta
from erase.core.projection import orthogonal
from erase.erasure.algebra import (
    compose,
    dare_merge,
    difference,
    export_lora,
    interference,
    low_rank,
    merge,
    scale,
    ties_merge,
)
from erase.erasure.erasure import Erasure
from erase.erasure.programs import export_kohya
from erase.methods import methods
from erase.methods.projection import ProjectionConfig, projection
from erase.prompts.request import EraseRequest, expand
from erase.runs.artefacts import export


def project(concepts_seed: int, **config) -> Erasure:
    scaled = {"space": "scaled", "rank": 2, "forget_alpha": 1.0 + concepts_seed}
    return projection(build_tiny_task(build_tiny_pipeline()), ProjectionConfig(**scaled | config))


def dense(erasure: Erasure) -> dict[str, torch.Tensor]:
    return {name: delta.dense() for name, delta in erasure.deltas.items()}


def assert_close(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name, change in one.items():
        assert torch.allclose(change, other[name], atol=1e-5), name


@pytest.mark.parametrize("other", [{}, {"space": "oblique"}, {"space": "oblique", "strength": 0.7}])
def test_composing_two_projections_equals_doing_both_in_order(tmp_path, other):
    first, second = project(0), project(5, **other)
    second.save_pretrained(tmp_path / "second")
    joint = compose([first, Erasure.from_pretrained(tmp_path / "second")])
    pipeline = build_tiny_pipeline()
    before = {n: pipeline.unet.get_parameter(n[5:]).detach().clone() for n in joint.deltas}
    for name, weight in before.items():
        one, two = first.deltas[name], second.deltas[name]
        width = weight.shape[1]
        edited = weight + one.dense()
        edited = edited @ (torch.eye(width) - two.down.T @ two.input_basis).T
        assert torch.allclose(weight + joint.deltas[name].dense(), edited, atol=1e-5)
        assert isinstance(joint.deltas[name], LowRankDelta)
    assert any(
        (dense(joint)[n] - dense(merge([first, second]))[n]).abs().max() > 1e-4 for n in before
    )


def test_composing_equals_projecting_what_is_projected_already():
    pipeline, first = build_tiny_pipeline(), project(0)
    with first.apply(pipeline.components):
        config = ProjectionConfig(space="scaled", rank=2, forget_alpha=6.0)
        second = projection(build_tiny_task(pipeline), config)
    joint = dense(compose([first, project(5)]))
    assert_close(
        joint, {name: change + dense(second)[name] for name, change in dense(first).items()}
    )


def test_a_projection_composed_with_itself_is_itself():
    weight = torch.randn(5, 8)
    axes = orthogonal(torch.randn(8, 2))
    up, down = axes.edit(weight)
    once = LowRankDelta(up.float(), down.float(), axes.right.float())
    assert torch.allclose(compose_deltas(once, once).dense(), once.dense(), atol=1e-5)
    trained = DenseDelta(torch.randn(5, 8))
    after = weight + compose_deltas(trained, once).dense()
    assert (after @ axes.left.float()).abs().max() < 1e-5


def test_composing_projections_is_associative():
    def one() -> LowRankDelta:
        axes = orthogonal(torch.randn(8, 2))
        up, down = axes.edit(weight)
        return LowRankDelta(up.float(), down.float(), axes.right.float())

    weight = torch.randn(5, 8)
    a, b, c = one(), one(), one()
    left, right = compose_deltas(compose_deltas(a, b), c), compose_deltas(a, compose_deltas(b, c))
    assert torch.allclose(left.dense(), right.dense(), atol=1e-5)
    assert not torch.allclose(right.dense(), a.dense() + compose_deltas(b, c).dense(), atol=1e-2)


def test_scaling_merging_and_subtracting_add_up():
    pipeline = build_tiny_pipeline()
    sparse, low = make_erasure(pipeline), project(0)
    doubled = merge([sparse, sparse])
    assert_close(dense(doubled), dense(scale(sparse, 2.0)))
    assert_close(dense(difference(doubled, sparse)), dense(sparse))
    both = merge([sparse, low])
    assert both.deltas.keys() == sparse.deltas.keys() | low.deltas.keys()


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5, 0.0, 0.3, 1e-4, 1e5])
def test_a_scaled_erasure_is_the_erasure_at_that_scale(factor, tmp_path):
    pipeline = build_tiny_pipeline()
    erasure = make_erasure(pipeline)
    scale(erasure, factor).save_pretrained(tmp_path / "scaled")
    scaled = Erasure.from_pretrained(tmp_path / "scaled")
    for name, delta in erasure.deltas.items():
        assert torch.equal(scaled.deltas[name].dense(), factor * delta.dense())
        exact = factor in (1.0, -1.0, 0.5, 0.0)
        assert scaled.deltas[name].values.dtype == (torch.float16 if exact else torch.float32)


def test_erasures_of_different_bases_are_not_joined():
    one = make_erasure(build_tiny_pipeline())
    name = next(iter(one.deltas))
    base = {"model": "other", "fingerprints": {name: "0" * 16}}
    with pytest.raises(ValueError, match="different bases"):
        merge([one, Erasure(one.deltas, {"base": base})])


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
def test_erasures_of_one_base_in_two_precisions_are_joined(coarse):
    pipelines = build_tiny_pipeline(), build_tiny_pipeline().to(coarse)
    made = methods()["projection"]
    parts = [made(build_tiny_task(p), ProjectionConfig(rank=2)) for p in pipelines]
    for order in (parts, parts[::-1]):
        joint = compose(order)
        for pipeline in pipelines:
            joint.apply(pipeline.components).revert()
        compose([joint, parts[0]])
        with torch.no_grad():
            changed = build_tiny_pipeline().to(coarse)
            changed.unet.get_parameter(next(iter(joint.deltas))[5:]).mul_(1.5)
        with pytest.raises(ValueError, match="differs from the base"):
            joint.apply(changed.components)


def test_a_truncated_lora_reports_its_measured_error():
    erasure = make_erasure(build_tiny_pipeline())
    cut = low_rank(erasure, 2)
    assert cut.recipe["truncation"]["left_out"] == ["text_encoder.final_layer_norm.bias"]
    squares = [
        (d.dense() - cut.deltas[n].dense() if n in cut.deltas else d.dense()).square().sum()
        for n, d in erasure.deltas.items()
    ]
    total = sum(d.dense().square().sum() for d in erasure.deltas.values())
    error = cut.recipe["truncation"]["relative_error"]
    assert error == pytest.approx(float((sum(squares) / total).sqrt()), abs=1e-5)
    assert 0 < error < 1


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_cut_of_a_cut_tells_all_that_was_lost(rank, tmp_path):
    erasure = make_erasure(build_tiny_pipeline())
    export_lora(erasure, tmp_path, 4)
    twice, once = low_rank(Erasure.from_pretrained(tmp_path), rank), low_rank(erasure, rank)
    assert_close(dense(twice), dense(once))
    told, told_at_once = twice.facts.truncation, once.facts.truncation
    assert told.relative_error == pytest.approx(told_at_once.relative_error, abs=1e-5)
    assert told.left_out == told_at_once.left_out != []


@pytest.mark.parametrize("how", [{"format": "lora"}, {"program": "comfyui"}])
def test_every_cut_to_a_lora_says_what_it_loses(how, tmp_path):
    erasure = make_erasure(build_tiny_pipeline())
    erasure.recipe["base"]["family"] = "sd"
    erasure.save_pretrained(tmp_path / "made")
    said = export(str(tmp_path / "made"), str(tmp_path / "lora"), lora_rank=2, **how)
    error = low_rank(erasure, 2).facts.truncation.relative_error
    assert f"relative error: {error}, 1 of its tensors left out" in said


def test_a_lora_holds_nothing_that_would_not_load(tmp_path):
    change, layers = LowRankDelta(torch.ones(4, 1), torch.ones(1, 4)), "encoder.block.0.layer.0"
    held, t5 = "transformer.proj.weight", f"text_encoder_3.{layers}.SelfAttention.q.weight"
    parts = [Erasure({name: change}, {"base": {"loads_lora": name == held}}) for name in (held, t5)]
    cut = low_rank(Erasure({held: change, t5: change}), 1)
    assert (set(cut.deltas), cut.facts.truncation.left_out) == ({held}, [t5])
    assert cut.facts.truncation.relative_error == pytest.approx(0.5**0.5, abs=1e-5)
    for none in ({t5: change}, {}):
        with pytest.raises(ValueError, match="no layer that a LoRA can hold"):
            low_rank(Erasure(none), 1)
    with pytest.raises(ValueError, match="comfyui reads none"):
        export_kohya(Erasure({}, {"base": {"family": "sd"}}), tmp_path / "none")
    for join in (compose, merge):
        for order in (parts, parts[::-1]):
            with pytest.raises(ValueError, match="load no LoRA"):
                export_lora(join(order), tmp_path / "joint", 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 3, 3)])
def test_truncation_at_full_rank_is_exact(shape):
    change = torch.randn(shape)
    assert torch.allclose(truncate_delta(DenseDelta(change), 6).dense(), change, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (4, 3, 3, 3)])
@pytest.mark.parametrize("true", [0, 2])
def test_a_change_cut_to_more_than_its_rank_is_itself(shape, true):
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.randn(n, true, generator=generator) for n in (shape[0], math.prod(shape[1:]))
    )
    change = (left @ right.T).view(shape)
    for rank in (true + 1, 4):
        assert torch.allclose(truncate_delta(DenseDelta(change), rank).dense(), change, atol=1e-6)


def test_interference_names_what_two_erasures_share():
    erasure = make_erasure(build_tiny_pipeline())
    rows = interference(erasure, scale(erasure, -0.5))
    assert len(rows) == 2
    for row in rows:
        assert row["cosine"] == pytest.approx(-1, abs=1e-3)
        assert row["undone"] == pytest.approx(0.5, abs=1e-3)
    assert rows[0]["overlap"] == 1.0
    assert all(
        row["principal_cosine"] == pytest.approx(1) for row in interference(project(0), project(0))
    )


CHANGES = [
    DenseDelta(torch.ones(3, 4)),
    SparseDelta(torch.ones(3, 4) > 0, torch.ones(12)),
    SparseDelta(torch.zeros(3, 4) > 0, torch.ones(0)),
    LowRankDelta(torch.ones(3, 1), torch.ones(1, 4)),
    LowRankDelta(torch.ones(3, 1), torch.zeros(1, 4)),
]


@pytest.mark.parametrize("one", CHANGES, ids=lambda change: type(change).__name__)
@pytest.mark.parametrize("other", CHANGES, ids=lambda change: type(change).__name__)
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_interference_is_of_numbers_where_nothing_is_left_of_a_change(one, other, scales):
    parts = (Erasure({"unet.a": change}) for change in (one, other))
    (row,) = interference(*map(scale, parts, scales))
    assert all(math.isfinite(value) for key, value in row.items() if key != "tensor")


@pytest.mark.parametrize(
    "join", [compose, merge, ties_merge, dare_merge, lambda parts: difference(*parts)]
)
def test_erasures_of_other_families_are_joined_only_where_they_meet(trained, join):
    low = methods()["projection"](build_tiny_task(build_tiny_pipeline()))
    half = Erasure(dict(list(low.deltas.items())[:1]), low.recipe)
    rest = Erasure(dict(list(low.deltas.items())[1:]), low.recipe)
    assert join([half, rest]).deltas.keys() == low.deltas.keys()
    rest.recipe = low.recipe | {"base": low.recipe["base"] | {"family": "flux"}}
    assert join([low, rest])
    classifier = methods()["bias_suppression"](build_digits_task(trained))
    for foreign in (rest, classifier):
        with pytest.raises(ValueError, match=r"made for \w+ and \w+ models; join only"):
            join([half, foreign])
        foreign.recipe = {}
        assert join([half, foreign])


@pytest.mark.parametrize("join", [compose, merge, ties_merge, dare_merge])
def test_what_is_joined_can_be_asked_for_as_its_parts_were(join):
    asked = [
        EraseRequest(["ghost"], ["skull"], retain=["pizza", "dog"], templates=("{concept}",)),
        EraseRequest(["Pizza"], ["hat"], retain=["ghost", "cat"], templates=("a {concept}",)),
    ]
    parts = [Erasure({"unet.a": DenseDelta(torch.ones(3))}, {"request": asdict(a)}) for a in asked]
    joint = join(parts).facts.asked()
    assert (joint.concepts, joint.anchors) == (("ghost", "Pizza"), ("skull", "hat"))
    assert joint.retain == ("dog", "cat")
    assert joint.templates == ("{concept}", "a {concept}")
    assert expand(joint, None).retain
    for alone in (scale(parts[0], 0.5), difference(*parts), join(parts[:1])):
        assert alone.facts.asked() == asked[0]


@pytest.mark.parametrize("join", [compose, merge, ties_merge, dare_merge])
@pytest.mark.parametrize(("sizes", "size"), [((32, 32), 32), ((0, 0), 0), ((32, 64), 0)])
def test_what_is_joined_is_drawn_at_the_size_of_its_parts(join, sizes, size):
    parts = [
        Erasure({"unet.a": DenseDelta(torch.ones(3))}, {"task": {"config": {"size": side}}})
        for side in sizes
    ]
    assert join(parts).facts.size == size
    assert scale(parts[0], 0.5).facts.size == sizes[0]


def test_anchors_of_parts_that_others_forget_or_have_none_are_left_out():
    def joint(*asked: EraseRequest) -> EraseRequest:
        return compose([Erasure({}, {"request": asdict(one)}) for one in asked]).facts.asked()

    ghost, skull = EraseRequest(["ghost"], ["skull"], retain=["dog"]), EraseRequest(["Skull"])
    both = joint(ghost, replace(skull, anchors=["hat"]))
    assert (both.concepts, both.anchors, both.retain) == (("ghost", "Skull"), (), ())
    lot = EraseRequest(["pizza"], redirect="random")
    assert (joint(ghost, lot).anchors, joint(ghost, lot).redirect) == ((), "anchor")
    assert joint(lot, replace(lot, concepts=["hat"])).redirect == "random"
