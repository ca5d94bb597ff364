import pytest
import torch
from safetensors.torch import load_file
from test_contract import draw_ghost, erase_tiny

from erase.core.delta import LowRankDelta
from erase.erasure.erasure import Erasure
from erase.erasure.programs import KOHYA, export_kohya
from erase.erasure.recipe import for_any_base

PREFIXES = {
    "sd": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "sdxl": {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}


def changes(path, pipeline, family) -> dict[str, torch.Tensor]:
    """Every weight's change as ComfyUI finds it: by its path with underscores for dots."""
    tensors, found = load_file(path), {}
    for component, prefix in PREFIXES[family].items():
        for layer, _ in getattr(pipeline, component).named_modules():
            text = "text_model." if component.startswith("text") else ""
            key = f"{prefix}_{text}{layer.removeprefix('text_model.')}".replace(".", "_")
            key = key.replace("add_embedding_linear_1", "label_emb_0_0")
            if f"{key}.alpha" in tensors:
                up, down = (tensors.pop(f"{key}.lora_{side}.weight") for side in ("up", "down"))
                scale = tensors.pop(f"{key}.alpha") / len(down)
                name = f"{component}.{layer.removeprefix('text_model.')}.weight"
                found[name] = scale * (up.flatten(1) @ down.flatten(1))
    assert not tensors
    return {name: change for name, change in found.items() if change.any()}


@pytest.mark.parametrize("task", ["both", "sdxl"])
@pytest.mark.parametrize("method", ["projection", "salun_lora"])
def test_kohyas_names_are_mapped_back(task, method, tmp_path):
    erasure, pipeline = erase_tiny(method, task)
    path = export_kohya(erasure, tmp_path / "comfy")
    found = changes(path, pipeline, erasure.recipe["base"]["family"])
    assert found.keys() == erasure.deltas.keys()
    for name, change in found.items():
        assert torch.allclose(change, erasure.deltas[name].dense().flatten(1), atol=1e-7)


@pytest.mark.parametrize("task", ["both", "sdxl"])
@pytest.mark.parametrize("method", ["projection", "salun_lora"])
def test_plain_diffusers_loads_kohyas_names(task, method, tmp_path):
    erasure, pipeline = erase_tiny(method, task)
    export_kohya(erasure, tmp_path / "comfy")
    with erasure.apply(pipeline.components):
        ours = draw_ghost(pipeline)
    pipeline.load_lora_weights(tmp_path / "comfy", weight_name=KOHYA)
    assert (draw_ghost(pipeline) - ours).abs().max() < 1e-5


def test_layers_that_are_one_in_the_original_code_are_joined(tmp_path):
    # Plain diffusers reads sd-scripts' names of Flux's blocks.
    erasure, pipeline = erase_tiny("projection", "flux")
    block = "transformer.transformer_blocks.0.attn"
    parts = ("add_q_proj", "add_v_proj", "to_q", "to_k", "to_v", "to_add_out", "to_out.0")
    ranks = {f"{block}.{part}.weight": rank for rank, part in enumerate(parts, 1)}
    torch.manual_seed(0)
    deltas = {n: LowRankDelta(torch.randn(32, k), torch.randn(k, 32)) for n, k in ranks.items()}
    some = Erasure(deltas, for_any_base(erasure.recipe))
    export_kohya(some, tmp_path / "a", "sd-scripts")
    with some.apply(pipeline.components, allow_other_base=True):
        ours = draw_ghost(pipeline)
    pipeline.load_lora_weights(tmp_path / "a", weight_name=KOHYA)
    assert (draw_ghost(pipeline) - ours).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("method", "task", "program", "said"),
    [
        ("salun", "both", "comfyui", "no LoRA"),
        ("projection", "flux", "a1111", "choose --for comfyui or sd-scripts"),
        ("projection", "pixart", "sd-scripts", "choose --for comfyui"),
        ("projection", "both", "forge", "for is 'forge'"),
    ],
)
def test_what_a_program_cannot_read_is_one_sentence(method, task, program, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        export_kohya(erase_tiny(method, task)[0], tmp_path / "comfy", program)
    assert not (tmp_path / "comfy").exists()


def test_a_file_that_would_be_read_by_no_layer_is_refused(tmp_path):
    erasure, _ = erase_tiny("salun_lora", "unet")
    conv = LowRankDelta(torch.ones(8, 1, 1, 1), torch.ones(1, 4, 3, 3))
    with pytest.raises(ValueError, match="sd-scripts reads none"):
        export_kohya(
            Erasure({"unet.conv_in.weight": conv}, erasure.recipe), tmp_path / "a", "sd-scripts"
        )
    assert not (tmp_path / "a").exists()


def test_attention_of_text_encoders_is_written_whole(tmp_path):
    erasure, _ = erase_tiny("projection", "sdxl", targets=("text_encoder_2",))
    layers = "text_encoder_2.encoder.layers.0"
    names = [f"{layers}.self_attn.k_proj.weight", f"{layers}.mlp.fc1.weight"]
    some = Erasure({name: erasure.deltas[name] for name in names}, erasure.recipe)
    tensors = load_file(export_kohya(some, tmp_path / "a"))
    prefix = "lora_te2_text_model_encoder_layers_0_self_attn"
    for part in ("q", "k", "v", "out"):
        up, down = (tensors[f"{prefix}_{part}_proj.lora_{side}.weight"] for side in ("up", "down"))
        change = up @ down
        assert change.shape == some.deltas[names[0]].shape
        assert bool(change.any()) == (part == "k")
    assert len(tensors) == 3 * 5
