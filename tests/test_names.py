import pytest
from hosts import build_tiny_pipeline
from torch import nn

from erase.core.activations import projectable_layers
from erase.core.names import canonical, find_weight, from_lora_key, lora_key, named_parameters


def both_spellings() -> list[nn.Module]:
    """A text encoder as it is, and within the `text_model` that older ones have."""
    bare = build_tiny_pipeline().text_encoder
    bare = getattr(bare, "text_model", bare)
    wrapped = nn.Module()
    wrapped.text_model = bare
    return [bare, wrapped]


def test_text_encoders_of_both_spellings_have_the_same_names():
    bare, wrapped = ({"text_encoder": module} for module in both_spellings())
    named = named_parameters(bare)
    assert named.keys() == named_parameters(wrapped).keys()
    assert not any("text_model" in name for name in named)
    for name, parameter in named.items():
        assert find_weight(bare, name) is find_weight(wrapped, name) is parameter
    layers = [projectable_layers(one["text_encoder"], "text_encoder") for one in (bare, wrapped)]
    assert layers[0].keys() == layers[1].keys()
    assert {f"{layer}.weight" for layer in layers[0]} <= named.keys()


def test_buffers_are_found_too():
    norm = nn.BatchNorm1d(3)
    assert find_weight({"model": norm}, "model.running_mean") is norm.running_mean


@pytest.mark.parametrize("name", ["unet", "unet.nowhere", "vae.conv.weight", ""])
def test_a_name_that_is_not_there_is_one_sentence(name):
    with pytest.raises(ValueError, match="no tensor"):
        find_weight({"unet": nn.Linear(2, 2), "vae": None}, name)


def test_lora_keys_go_back_to_names_in_both_spellings():
    for name in ("unet.down.0.to_k.weight", "text_encoder_2.encoder.layers.0.mlp.fc1.weight"):
        for part in ("up", "down"):
            key = lora_key(name, part)
            assert from_lora_key(key) == from_lora_key(key.replace("text_model.", "", 1))
            assert from_lora_key(key) == (name, part)
    assert lora_key("text_encoder.a.weight", "up") == "text_encoder.text_model.a.lora_B.weight"
    assert canonical("text_encoder", "text_model.a.weight") == "text_encoder.a.weight"
