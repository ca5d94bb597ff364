import numpy as np
import onnxruntime
import pytest
import torch
from hosts import build_digits_model, digits
from PIL import Image
from second_device import SecondDevice
from skimage.data import astronaut
from torchvision.transforms.functional import to_pil_image

from erase.bundled import JUDGE
from erase.evaluate.base import OpenJudge, protocol_hash
from erase.evaluate.classifiers.report import save_boundaries
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.fidelity import frechet, frechet_distance, kernel, kernel_distance
from erase.evaluate.pictures.folders import FidelityConfig, fidelity
from erase.evaluate.pictures.judges import embedded, open_judge
from erase.evaluate.pictures.nudity import (
    HIDDEN_SCORE,
    Detection,
    NudityConfig,
    NudityDetector,
    blurred,
    count,
    nudity,
    read_detections,
    write_detections,
)


@pytest.fixture(scope="module")
def detector() -> NudityDetector:
    return NudityDetector()


def test_nudenet_sees_the_same_in_every_form(detector, tmp_path):
    array = astronaut()
    Image.fromarray(array).save(tmp_path / "astronaut.png")
    tensor = torch.tensor(array).permute(2, 0, 1) / 255
    forms = [Image.fromarray(array), tmp_path / "astronaut.png", array, tensor]
    found = detector.detect(forms)
    assert all(detections == found[0] for detections in found)
    assert any(d.label == "FACE_FEMALE" and d.score >= 0.6 for d in found[0])
    assert all(d.score > HIDDEN_SCORE for detections in found for d in detections)


def test_rescoring_equals_counting_afresh(detector, tmp_path):
    found = detector.detect([astronaut(), np.zeros((64, 64, 3), np.uint8)])
    write_detections(found, tmp_path / "detections.json")
    kept = read_detections(tmp_path / "detections.json")
    for threshold in (0.3, 0.5, 0.75):
        again = count(kept, threshold, ["FACE_FEMALE"])
        assert again == count(found, threshold, ["FACE_FEMALE"])
        assert again["n"] == 2
    assert count(kept, 0.3, ["FACE_FEMALE"])["pictures"] == 1
    with pytest.raises(ValueError, match="own cut"):
        count(kept, 0.1)


def test_classes_that_nudenet_does_not_know_are_refused_and_not_counted_as_none():
    found = [[Detection("FACE_FEMALE", 0.9, (0, 0, 4, 4))]]
    assert count(found, 0.6, ["FACE_FEMALE", "FACE_MALE"])["pictures"] == 1
    config = NudityConfig(nudity=True, classes=["FACE_FEMALE", "FACE"])
    for counted in (lambda: count(found, 0.6, ["FACE"]), lambda: nudity(config, None)):
        with pytest.raises(ValueError, match=r"no class FACE; choose of .*FACE_FEMALE"):
            counted()


def test_distances_to_other_pictures_are_of_another_protocol(tmp_path):
    places = {"one": 0, "same": 0, "other": 1}
    for name, seed in places.items():
        (tmp_path / name).mkdir()
        for i, picture in enumerate(pictures(seed)[:3]):
            to_pil_image(picture).save(tmp_path / name / f"{i}.png")
    judge = OpenJudge(lambda: open_judge(f"local-dir:{JUDGE}"))
    hashes = {
        name: protocol_hash(fidelity(FidelityConfig(str(tmp_path / name)), judge).protocol())
        for name in places
    }
    assert hashes["one"] == hashes["same"] != hashes["other"]


def test_only_the_box_is_blurred(detector):
    picture = astronaut()
    (found,) = detector.detect([picture])
    face = next(d for d in found if d.label == "FACE_FEMALE")
    left, top, width, height = face.box
    shown = np.asarray(blurred(picture, [face], 0.3, ["FACE_FEMALE"]))
    changed = (shown != picture).any(2)
    assert changed[top : top + height, left : left + width].mean() > 0.9
    changed[top : top + height, left : left + width] = False
    assert not changed.any()


class Features(torch.nn.Module):
    num_features = 12

    def forward(self, pictures):
        small = torch.nn.functional.adaptive_avg_pool2d(pictures.double() / 255, 2)
        return small.flatten(1)


def pictures(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shift = 20 * seed
    return torch.randint(shift, 200 + shift, (60, 3, 32, 32), generator=generator).byte()


def test_distances_equal_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    features, (one, other) = Features(), (pictures(0), pictures(2))
    fid = FrechetInceptionDistance(features).set_dtype(torch.float64)
    kid = KernelInceptionDistance(features, subsets=1, subset_size=60)
    for metric in (fid, kid):
        metric.update(one, real=True)
        metric.update(other, real=False)
    assert frechet(features(one), features(other)) == pytest.approx(float(fid.compute()), abs=1e-4)
    found = kernel(features(one), features(other))
    assert found == pytest.approx(float(kid.compute()[0]), abs=1e-4)


def test_the_kernel_distances_interval_is_a_jackknifes():
    one, other = Features()(pictures(0)), Features()(pictures(2))
    distance = kernel_distance(one, other)

    def variance(kept, whole):
        each = [kernel(torch.cat([kept[:i], kept[i + 1 :]]), whole) for i in range(len(kept))]
        return np.var(each) * (len(each) - 1)

    half = 1.96 * (variance(one, other) + variance(other, one)) ** 0.5
    assert distance.interval == pytest.approx((distance.value - half, distance.value + half))
    assert distance.n == (60, 60)
    with pytest.raises(ValueError, match="at least 3"):
        kernel_distance(one[:2], other)


def test_the_frechet_distance_lies_in_its_interval():
    one, other = Features()(pictures(0)), Features()(pictures(2))
    distance = frechet_distance(one, other)
    assert distance.interval[0] <= distance.value <= distance.interval[1]
    assert distance.n == (60, 60)


def test_a_judge_judges_in_full_precision_under_autocast():
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    labels, seen = ["ghost", "skull"], []
    for enabled in (False, True):
        judge = ClipJudge(f"local-dir:{JUDGE}")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            embeddings = judge.embed(pictures)
            seen.append((embeddings, judge.score(embeddings, labels)))
            judge.classify(embeddings, "object", labels)
        seen[-1] += (judge._caption_embeddings("object", tuple(labels)),)
    assert all(map(torch.equal, *seen))


def test_judges_see_pictures_of_any_sizes_together_in_their_order():
    judge, sizes = open_judge(f"local-dir:{JUDGE}"), [(32, 32)] * 20 + [(40, 48), (32, 32)]
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8))
        for i, size in enumerate(sizes)
    ]
    together = embedded(judge, pictures)
    alone = torch.cat([embedded(judge, [picture]) for picture in pictures])
    assert torch.allclose(together, alone, atol=1e-5)


def test_nudenets_protocol_names_the_provider_that_computes(detector):
    asked = NudityDetector("cuda:0")
    assert detector.protocol(0.6)["provider"] == "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert asked.protocol(0.6)["provider"] == "CPUExecutionProvider"


def test_pictures_of_a_classifier_are_made_where_it_computes(tmp_path):
    with SecondDevice(), torch.no_grad():
        model = build_digits_model().eval().to("second")
        inputs = digits().tensors[0][:3]
        save_boundaries({"original": model}, inputs, tmp_path / "boundary.png")
    assert (tmp_path / "boundary.png").exists()
