import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from erase.bundled import JUDGE
from erase.cli import build_parser, main
from erase.evaluate.pictures.classifier_judge import OTHER, ClassifierJudge
from erase.evaluate.pictures.judges import open_judge
from erase.runs.drawing import PromptFile, read_prompts
from erase.runs.evaluate import SamplingConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "protocols").glob("*.yaml"))
QUICK = ["--drawing.steps", "2", "--evaluation.judge", f"local-dir:{JUDGE}"]


@pytest.fixture
def prompts(tmp_path):
    lines = ["prompt,sd_seed,sd_guidance_scale,class,group", "a ghost,7,4,ghost,erased"]
    lines += ["a pizza,8,2,pizza,others", '"a boo, in ink style",9,4,ghost,synonyms']
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_published_protocol_is_read_and_names_its_quirks(config):
    options = build_parser("protocol").parse_args(["--config", str(config), "--output", "out"])
    assert options.quirks
    if not options.prompts.path.startswith("hf://") and options.prompts.path:
        file = PromptFile(**vars(options.prompts))
        groups = {one.group for one in read_prompts(file, 7.5)}
        assert {*options.erased_groups, *options.kept_groups} <= groups


def test_a_protocol_draws_and_measures_by_group(prompts, tmp_path, capsys):
    command = ["protocol", "--prompts.path", str(prompts), "--prompts.label", "class", *QUICK]
    command += ["--prompts.group", "group", "--prompts.seed", "sd_seed"]
    command += ["--prompts.guidance_scale", "sd_guidance_scale", "--clip_score", "true"]
    command += ["--erased_groups", '["erased", "synonyms"]', "--kept_groups", '["others"]']
    command += ["--evaluation.labels", '["ghost", "pizza"]', "--quirks", '["drawn in two steps"]']
    reports = []
    for name in "ab":
        assert main([*command, "--output", str(tmp_path / name)]) == 0
        reports.append((tmp_path / name / "evaluation.json").read_bytes())
    assert reports[0] == reports[1]
    report = json.loads(reports[0])
    assert report["protocol"]["quirks"] == ["drawn in two steps"]
    found = report["figures"]["accuracy"]
    assert set(found["by_group"]) == {"erased", "others", "synonyms"}
    assert 0 <= found["harmonic_mean"] <= 1
    assert report["figures"]["clip_score"]["n"] == 3
    assert len(report["protocol_hash"]) == 16
    assert len(list((tmp_path / "a" / "pictures").iterdir())) == 3
    asked = json.loads((tmp_path / "a" / "prompts.json").read_text())
    assert [one["seed"] for one in asked] == [7, 8, 9]
    assert [one["guidance_scale"] for one in asked] == [4, 2, 4]


def test_every_prompt_is_drawn_with_every_seed(prompts):
    found = read_prompts(PromptFile(str(prompts), seeds=[188, 288], limit=2), 7.5)
    assert [one.seed for one in found] == [188, 288, 188, 288]
    assert {one.guidance_scale for one in found} == {7.5}


def test_distilled_models_are_drawn_without_guidance(prompts):
    scale = SamplingConfig(guidance_scale=0.0).guidance_scale
    assert {one.guidance_scale for one in read_prompts(PromptFile(str(prompts)), scale)} == {0.0}


def test_a_classifier_is_a_judge(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    name = f"timm/resnet10t/{tmp_path / 'own.safetensors'}"
    judge = ClassifierJudge(name, ["dog", "cat", "sea"])
    pictures = torch.rand(4, 3, 200, 300)
    logits = judge.embed(pictures)
    assert logits.shape == (4, 3)
    seen = judge.classify(logits, "concept", ["dog", "cat", "sea"])
    assert seen == [["dog", "cat", "sea"][i] for i in logits.argmax(1).tolist()]
    others = [name for name in ("dog", "cat", "sea") if name != seen[0]]
    assert judge.classify(logits, "concept", others)[0] == OTHER
    with pytest.raises(ValueError, match="knows no class bird"):
        judge.classify(logits, "concept", ["bird"])
    with pytest.raises(ValueError, match="classes of its own"):
        ClassifierJudge("timm/resnet10t", ["dog"])
    with pytest.raises(ValueError, match="could not be opened"):
        ClassifierJudge("timm/nothing_like_it/none")


def test_classifiers_of_torchvision_and_transformers_are_judges(tmp_path):
    torch.manual_seed(0)
    pictures, names = torch.rand(2, 3, 70, 90), ["dog", "cat", "sea"]
    save_file(squeezenet1_1(num_classes=3).state_dict(), tmp_path / "own.safetensors")
    name = f"torchvision/squeezenet1_1/{tmp_path / 'own.safetensors'}"
    judge = open_judge(name, names)
    assert judge.embed(pictures).shape == (2, 3)
    assert set(judge.classify(judge.embed(pictures), "concept", names)) <= set(names)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16, id2label=dict(enumerate(names)),
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    judge = open_judge(f"transformers/{tmp_path / 'vit'}")
    assert judge.embed(pictures).shape == (2, 3)
    assert set(judge.classify(judge.embed(pictures), "concept", names)) <= set(names)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--prompts.path", "none.csv"], "cannot be read"),
        (["--prompts.text", "caption"], "no column caption"),
        (["--drawing.scheduler", "NoScheduler"], "has no NoScheduler"),
        (["--prompts.label", "class", "--erased_groups", '["gone"]'], "of the group gone"),
        (["--prompts.label", "class", "--evaluation.judge", ""], "need a judge"),
        (["--prompts.label", "class", "--evaluation.labels", '["pizza"]'], "not among the labels"),
        (["--prompts.seed", "class"], "is no number to draw with"),
        (["--kept_groups", '["others"]'], "name --prompts.label"),
        (["--evaluation.nudity", "true", "--evaluation.threshold", "0.1"], "own cut"),
    ],
)
def test_bad_protocols_get_one_sentence_before_any_drawing(
    prompts, tmp_path, capsys, arguments, reason
):
    command = ["protocol", "--prompts.path", str(prompts), *QUICK, *arguments]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pictures_are_judged_by_a_classifier_of_ones_own(tmp_path):
    torch.manual_seed(0)
    save_file(
        timm.create_model("resnet10t", num_classes=2).state_dict(), tmp_path / "w.safetensors"
    )
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "0.png")
    command = ["evaluate", str(tmp_path / "pictures"), "--output", str(tmp_path / "out")]
    command += ["--judge", f"timm/resnet10t/{tmp_path / 'w.safetensors'}"]
    command += ["--judge_classes", '["a", "b"]', "--labels", '["a", "b"]']
    assert main(command) == 0
    figures = json.loads((tmp_path / "out" / "evaluation.json").read_text())["figures"]["labels"]
    assert figures["a"]["value"] + figures["b"]["value"] == 1


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (b"prompt,seed\na ghost,1\na pizza\n", "row 2 of .* has more or fewer fields"),
        (b"prompt,seed\na ghost,1,2\n", "row 1 of .* has more or fewer fields"),
        (b"prompt,seed,scale\na ghost,1,nan\n", "is no number to draw with"),
        (b"prompt,seed,scale\na ghost,1,inf\n", "is no number to draw with"),
        (b"prompt,seed,scale\na ghost,1.5,2\n", "is no number to draw with"),
        (b"prompt,seed\nun caf\xe9,1\n", "cannot be read"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused(tmp_path, rows, reason):
    path = tmp_path / "prompts.csv"
    path.write_bytes(rows)
    scale = "scale" if b"scale" in rows else ""
    with pytest.raises(ValueError, match=reason):
        read_prompts(PromptFile(str(path), seed="seed", guidance_scale=scale), 7.5)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_bytes("\ufeffprompt,seed\nune forêt,-1\n".encode())
    (row,) = read_prompts(PromptFile(str(path), seed="seed"), 7.5)
    assert (row.text, row.seed) == ("une forêt", -1)
