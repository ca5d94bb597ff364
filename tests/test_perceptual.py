from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1
from torchvision.transforms.functional import to_pil_image

from erase.evaluate.pictures.folders import lpips


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return keep_backbone(tmp_path)


def keep_backbone(home: Path) -> str:
    """The real architecture with random weights, where the hub would keep the trained ones."""
    kept = home / "hub" / "checkpoints"
    kept.mkdir(parents=True)
    torch.manual_seed(0)
    name = SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    torch.save(squeezenet1_1(weights=None).state_dict(), kept / name)
    return "squeeze"


def pictures(seed: int, count: int = 3) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(seed)
    return [to_pil_image(torch.rand(3, 64, 64, generator=generator)) for _ in range(count)]


def test_equal_pictures_are_at_no_distance_and_others_are(backbone, tmp_path):
    same = lpips(pictures(0), backbone).figures(pictures(0), tmp_path)
    other = lpips(pictures(1), backbone).figures(pictures(0), tmp_path)
    assert same == {"value": 0.0, "standard_error": 0.0, "n": 3}
    assert other["value"] > 0


def test_distances_to_other_partners_are_of_another_protocol(backbone):
    first = lpips(pictures(0), backbone).protocol()
    assert lpips(pictures(0), backbone).protocol() == first
    for others in (pictures(1), pictures(0)[::-1], [p.resize((32, 32)) for p in pictures(0)]):
        assert lpips(others, backbone).protocol() != first


def test_pictures_without_partners_are_refused(backbone, tmp_path):
    with pytest.raises(ValueError, match="3 pictures and their 2 partners"):
        lpips(pictures(0, 2), backbone).figures(pictures(0), tmp_path)


def test_a_missing_backbone_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *_: (_ for _ in ()).throw(OSError("no route")))
    with pytest.raises(ValueError, match="LPIPS with squeeze cannot be opened"):
        lpips(pictures(0), "squeeze")
