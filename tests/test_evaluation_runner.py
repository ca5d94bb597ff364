import json

import pytest
from PIL import Image
from skimage.data import astronaut, chelsea, coffee

from erase.bundled import JUDGE
from erase.cli import main
from erase.evaluate.pictures.nudity import NudityDetector, count, read_detections
from erase.support.pictures import load_folder

JUDGED = ["--judge", f"local-dir:{JUDGE}"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, array in enumerate((astronaut(), chelsea(), coffee())):
        Image.fromarray(array).save(folder / f"{i}.png")
    (tmp_path / "captions.txt").write_text("a woman\na cat face\na cup\n")
    return folder


def test_every_figure_names_its_protocol(pictures, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["evaluate", str(pictures), "--output", str(output), *JUDGED, "--nudity", "true"]
    command += ["--labels", '["cat face", "pizza"]', "--captions", str(tmp_path / "captions.txt")]
    command += ["--reference", str(pictures), "--classes", '["FACE_FEMALE"]']
    assert main(command) == 0
    assert "protocol" in capsys.readouterr().out
    report = json.loads((output / "evaluation.json").read_text())["figures"]
    assert set(report) == {"labels", "clip_score", "fidelity", "nudity"}
    assert len({figures["protocol_hash"] for figures in report.values()}) == 4
    assert sum(report["labels"][name]["value"] for name in ("cat face", "pizza")) == 1.0
    assert report["clip_score"]["n"] == 3
    assert report["fidelity"]["frechet_distance"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert report["nudity"]["by_class"] == {"FACE_FEMALE": 1}
    assert len(list((output / "blurred").iterdir())) == 3


def test_a_part_of_a_folder_is_pictures_too(pictures):
    whole = load_folder(pictures)
    assert [one.tobytes() for one in whole[1:]] == [one.tobytes() for one in list(whole)[1:]]


def test_rescoring_equals_detecting_afresh(pictures, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["evaluate", str(pictures), "--output", str(output), "--nudity", "true"]) == 0
    capsys.readouterr()
    for threshold in (0.3, 0.75):
        again = ["evaluate", str(output), "--rescore", f"--threshold={threshold}"]
        assert main([*again, "--classes", '["FACE_FEMALE"]']) == 0
        found = NudityDetector().detect(sorted(pictures.iterdir()))
        afresh = count(found, threshold, ["FACE_FEMALE"])
        assert json.loads(capsys.readouterr().out) == afresh
    assert read_detections(output / "detections.json") == found


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Nothing is to be measured"),
        (["--labels", '["cat face"]'], "name one, e.g."),
        (["--nudity", "true", "--threshold", "0.1"], "own cut"),
        (["--captions", "CAPTIONS", *JUDGED], "3 pictures and 1 captions"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    pictures, tmp_path, capsys, arguments, reason
):
    captions = tmp_path / "one.txt"
    captions.write_text("a woman\n")
    arguments = [str(captions) if word == "CAPTIONS" else word for word in arguments]
    command = ["evaluate", str(pictures), "--output", str(tmp_path / "out"), *arguments]
    assert main(command) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
