import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from erase.evaluate.fidelity import frechet, frechet_distance, kernel, kernel_distance
from erase.evaluate.nudity import (
    NudityDetector,
    blurred,
    count,
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


def test_intervals_name_n_and_hold_the_kernel_distance():
    one, other = Features()(pictures(0)), Features()(pictures(2))
    distance = kernel_distance(one, other, subset=30)
    assert distance.interval[0] <= distance.value <= distance.interval[1]
    assert distance.n == frechet_distance(one, other).n == (60, 60)
    with pytest.raises(ValueError, match="fewer than the subset"):
        kernel_distance(one, other, subset=61)
