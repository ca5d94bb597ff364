import dataclasses

import pytest
import torch
from hosts import CATALOGUE, build_tiny_pipeline
from observation import CaptionedPictures, Observation, distance_to_oracle, observe

from erase.bundled import JUDGE
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.prompts.request import EraseRequest, expand


def seen(pipeline, **config) -> Observation:
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    generator = torch.Generator().manual_seed(0)
    real = {
        "forget": CaptionedPictures(torch.rand(3, 3, 16, 16, generator=generator), ["a ghost"] * 3),
        "retain": CaptionedPictures(
            torch.rand(2, 3, 16, 16, generator=generator), ["a pizza", "a skull"]
        ),
    }
    evaluation = EvaluationConfig(**{"forget_pictures": 4, "retain_pictures": 4} | config)
    return observe(
        pipeline, prompts, real, CATALOGUE.sampling, ClipJudge(f"local-dir:{JUDGE}"), evaluation
    )


def test_a_model_is_at_no_distance_from_itself_and_at_some_from_another(tiny_pipeline, tmp_path):
    oracle = seen(tiny_pipeline)
    oracle.save(tmp_path / "oracle.safetensors")
    loaded = Observation.load(tmp_path / "oracle.safetensors")
    same = distance_to_oracle(seen(build_tiny_pipeline()), loaded)
    assert set(same["accuracy_gap"].values()) == {0.0}
    assert max(found["value"] for found in same["prediction_mse"].values()) < 1e-6  # half precision
    assert [found["n"] for found in same["prediction_mse"].values()] == [3, 2]
    other = build_tiny_pipeline()
    with torch.no_grad():
        other.unet.conv_out.weight.add_(0.1)
    apart = distance_to_oracle(seen(other), loaded)
    assert min(found["value"] for found in apart["prediction_mse"].values()) > 1e-4
    for side in ("forget", "retain"):
        values = [d["kernel_distance"][side]["value"] for d in (same, apart)]
        assert values[0] < values[1]


def test_observations_of_different_protocols_are_not_compared(tiny_pipeline, tmp_path):
    one = seen(tiny_pipeline)
    with pytest.raises(ValueError, match="differ in evaluation, prompts"):
        distance_to_oracle(one, seen(tiny_pipeline, retain_pictures=3))
    bare = dataclasses.replace(one, protocol={})
    with pytest.raises(ValueError, match="differ in"):
        distance_to_oracle(one, bare)
    (tmp_path / "no.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match="holds no observation"):
        Observation.load(tmp_path / "no.safetensors")
