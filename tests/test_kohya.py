import pytest
import torch
from safetensors.torch import load_file
from test_contract import draw_ghost, erase_tiny

from erase.erasure.erasure import Erasure
from erase.erasure.kohya import KOHYA, export_kohya

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
    # Its converter knows no add_embedding, which ComfyUI does.
    known = {name: d for name, d in erasure.deltas.items() if "add_embedding" not in name}
    erasure = Erasure(known, erasure.recipe)
    export_kohya(erasure, tmp_path / "comfy")
    with erasure.apply(pipeline.components):
        ours = draw_ghost(pipeline)
    pipeline.load_lora_weights(tmp_path / "comfy", weight_name=KOHYA)
    assert (draw_ghost(pipeline) - ours).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("method", "task", "said"), [("salun", "both", "no LoRA"), ("projection", "sd3", "as it is")]
)
def test_what_has_no_such_names_is_one_sentence(method, task, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        export_kohya(erase_tiny(method, task)[0], tmp_path / "comfy")
    assert not (tmp_path / "comfy").exists()
