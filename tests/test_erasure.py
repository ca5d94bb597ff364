import pytest
import torch
from diffusers import StableDiffusionPipeline
from hosts import build_tiny_pipeline, draw_ghost
from safetensors.torch import save_file

from erase.core.delta import DenseDelta, SparseDelta, deltas_between
from erase.core.fingerprint import fingerprint
from erase.core.mask import build_mask
from erase.erasure.erasure import Erasure


def make_erasure(pipeline, scale: float = 0.1) -> Erasure:
    """A sparse and a dense delta, and the fingerprints of the base."""
    names = ["unet.conv_in.weight", "text_encoder.final_layer_norm.bias"]
    weights = {
        name: getattr(pipeline, name.split(".")[0]).get_parameter(name.split(".", 1)[1]).data
        for name in names
    }
    torch.manual_seed(1)
    mask = build_mask({name: torch.rand(w.shape) for name, w in weights.items()}, 0.5)
    mask.tensors[names[1]].fill_(True)
    after = {
        name: w + scale * torch.randn_like(w) * mask.tensors[name] for name, w in weights.items()
    }
    prints = {name: fingerprint(weight) for name, weight in weights.items()}
    base = {"model": "tiny", "fingerprints": prints}
    return Erasure(deltas_between(weights, after, mask), {"base": base})


def snapshot(pipeline) -> dict[str, torch.Tensor]:
    return {
        f"{component}.{name}": tensor.clone()
        for component in ("unet", "text_encoder", "vae")
        for name, tensor in getattr(pipeline, component).state_dict().items()
    }


def changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_apply_then_revert_is_bit_equal(tiny_pipeline):
    before = snapshot(tiny_pipeline)
    erasure = make_erasure(tiny_pipeline)
    applied = erasure.apply(tiny_pipeline.components, scale=0.7)
    assert changed(before, snapshot(tiny_pipeline)) == set(erasure.deltas)
    applied.revert()
    assert not changed(before, snapshot(tiny_pipeline))


def test_an_exception_leaves_the_pipeline_as_it_was(tiny_pipeline):
    before = snapshot(tiny_pipeline)
    with pytest.raises(RuntimeError), make_erasure(tiny_pipeline).apply(tiny_pipeline.components):
        raise RuntimeError
    assert not changed(before, snapshot(tiny_pipeline))


def test_scale_multiplies_the_change(tiny_pipeline):
    erasure, weight = make_erasure(tiny_pipeline), tiny_pipeline.unet.conv_in.weight
    before, change = weight.clone(), erasure.deltas["unet.conv_in.weight"].dense()
    with erasure.apply(tiny_pipeline.components, scale=0.5):
        assert torch.equal(weight, before + 0.5 * change)


def test_saved_and_loaded_erasures_are_equal_and_small(tiny_pipeline, tmp_path):
    erasure = make_erasure(tiny_pipeline)
    erasure.save_pretrained(tmp_path / "e")
    back = Erasure.from_pretrained(tmp_path / "e")
    assert back.recipe == erasure.recipe
    kinds = {name: type(delta) for name, delta in back.deltas.items()}
    assert set(kinds.values()) == {SparseDelta, DenseDelta}
    for name, delta in erasure.deltas.items():
        assert torch.equal(delta.dense(), back.deltas[name].dense())
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == [
        "README.md",
        "deltas.safetensors",
        "erasure.json",
    ]


def test_another_base_is_refused_before_anything_changes(tiny_pipeline):
    erasure = make_erasure(tiny_pipeline)
    with torch.no_grad():
        tiny_pipeline.unet.conv_in.weight[0, 0, 0, 0] += 1
    before = snapshot(tiny_pipeline)
    with pytest.raises(ValueError, match="differs from the base"):
        erasure.apply(tiny_pipeline.components)
    assert not changed(before, snapshot(tiny_pipeline))
    with erasure.apply(tiny_pipeline.components, allow_other_base=True):
        assert changed(before, snapshot(tiny_pipeline)) == set(erasure.deltas)


def test_a_base_without_the_tensor_or_with_another_shape_is_refused(tiny_pipeline):
    missing = Erasure({"unet.nowhere": DenseDelta(torch.ones(1))})
    with pytest.raises(ValueError, match=r"no tensor unet\.nowhere"):
        missing.apply(tiny_pipeline.components)
    misshapen = Erasure({"unet.conv_in.bias": DenseDelta(torch.ones(1))})
    with pytest.raises(ValueError, match="has shape"):
        misshapen.apply(tiny_pipeline.components)


@pytest.mark.parametrize("damage", ["missing", "truncated", "no recipe", "strange"])
def test_broken_folders_get_one_sentence(tiny_pipeline, tmp_path, damage):
    folder = tmp_path / "e"
    if damage != "missing":
        make_erasure(tiny_pipeline).save_pretrained(folder)
    if damage == "truncated":
        weights = folder / "deltas.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    if damage == "no recipe":
        (folder / "erasure.json").unlink()
    if damage == "strange":
        save_file({"a.b.alpha.weight": torch.ones(1)}, folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="not a readable erasure folder"):
        Erasure.from_pretrained(folder)


def test_folders_of_others_are_never_overwritten(tiny_pipeline, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other things"):
        make_erasure(tiny_pipeline).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_exported_folder_draws_the_same_in_stock_diffusers(tiny_pipeline, tmp_path):
    erasure = make_erasure(tiny_pipeline)
    with erasure.apply(tiny_pipeline.components):
        ours = draw_ghost(tiny_pipeline)
    before = snapshot(tiny_pipeline)
    erasure.export_pipeline(tiny_pipeline, tmp_path / "plain")
    assert not changed(before, snapshot(tiny_pipeline))
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "plain")
    assert torch.equal(ours, draw_ghost(stock))


def test_exports_never_replace_a_folder(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="holds other things"):
        make_erasure(tiny_pipeline).export_pipeline(tiny_pipeline, tmp_path / "base")
    assert (tmp_path / "base/model_index.json").exists()


def test_fingerprints_are_alike_in_float16_and_float32():
    half = build_tiny_pipeline().unet.conv_in.weight.half()
    assert fingerprint(half) == fingerprint(half.float())
