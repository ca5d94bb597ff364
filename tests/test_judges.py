import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip import factory
from PIL import Image
from skimage.data import chelsea
from torchvision.transforms.functional import to_tensor

from erase.bundled import JUDGE
from erase.evaluate.pictures.classifier_judge import ClassifierJudge
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.judges import judge_protocol

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
PICTURES = [Image.fromarray(chelsea()), Image.fromarray(chelsea()).resize((20, 90))]
TAGS = [("ViT-B-32", "openai"), ("ViT-B-32-quickgelu", "openai"), ("ViT-B-32", "laion400m_e31"),
        ("ViT-B-16", "metaclip_400m"), ("ViT-B-32", "laion2b_s34b_b79k")]  # fmt: skip


def embedded_by_open_clip(model: torch.nn.Module, transform: object) -> torch.Tensor:
    with torch.no_grad():
        each = [model.encode_image(transform(one)[None], normalize=True) for one in PICTURES]
    return torch.cat(each)


def embedded_by(judge: ClipJudge | ClassifierJudge) -> torch.Tensor:
    return torch.cat([judge.embed(to_tensor(one)[None]) for one in PICTURES])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where small models go by the names of large ones."""
    registered = dict(factory._MODEL_CONFIGS)
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", registered)
    for name in {name for name, _ in TAGS} | {"ViT-B-16-quickgelu"}:
        registered[name] = SMALL | {"quick_gelu": name.endswith("quickgelu")}
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    weights = str(tmp_path / "weights.pt")
    monkeypatch.setattr(factory, "download_pretrained", lambda *_, **__: weights)
    return tmp_path


@pytest.mark.parametrize(("architecture", "tag"), TAGS)
def test_a_judge_has_the_activation_its_weights_were_trained_with(folder, architecture, tag):
    quick = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    model, transform = open_clip.create_model_from_pretrained(
        architecture, tag, force_quick_gelu=quick
    )
    judge = ClipJudge(f"{architecture}/{tag}")
    assert torch.equal(embedded_by(judge), embedded_by_open_clip(model.eval(), transform))
    told = judge_protocol(judge)
    assert told["judge"] == f"{architecture}/{tag}"
    assert told["computes"].startswith("QuickGELU;" if quick else "GELU;")


def test_a_file_that_does_not_tell_its_activation_is_refused(folder):
    with pytest.raises(ValueError, match="ViT-B-32-quickgelu/FILE if so"):
        ClipJudge(f"ViT-B-32/{folder / 'weights.pt'}")
    judge = ClipJudge(f"ViT-B-32-quickgelu/{folder / 'weights.pt'}")
    assert judge_protocol(judge)["judge"] == "ViT-B-32-quickgelu/weights.pt"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["squash", "shortest", "longest"])
def test_a_judge_reads_pictures_through_open_clips_own_transform(folder, mode, interpolation):
    how = {"resize_mode": mode, "interpolation": interpolation, "mean": [0.5] * 3, "std": [0.4] * 3}
    config = {"model_cfg": SMALL, "preprocess_cfg": how}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "weights.pt").rename(folder / "open_clip_pytorch_model.bin")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    judge = ClipJudge(f"local-dir:{folder}")
    assert torch.equal(embedded_by(judge), embedded_by_open_clip(model.eval(), transform))
    assert interpolation in judge.computes.lower()


def test_a_classifier_reads_pictures_through_timms_own_transform(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    judge = ClassifierJudge(f"timm/test_efficientnet/{tmp_path / 'weights.pt'}", ["a", "b", "c"])
    with torch.no_grad():
        wanted = torch.cat([model(transform(one)[None]) for one in PICTURES])
    assert torch.equal(embedded_by(judge), wanted)
    assert judge_protocol(judge)["judge"] == "timm/test_efficientnet/weights.pt"


def test_the_bundled_judge_is_named_without_its_folder():
    assert judge_protocol(ClipJudge(f"local-dir:{JUDGE}"))["judge"] == "judge"
