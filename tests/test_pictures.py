from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from erase.cli import main
from erase.support.pictures import load_folder
from erase.tasks.classification.datasets import load_data

RAMP = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def read(picture: Image.Image, path: Path, **options: object) -> np.ndarray:
    path.parent.mkdir(exist_ok=True)
    picture.save(path, **options)
    return np.asarray(load_folder(path.parent)[0])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_keep_their_greys(tmp_path, name):
    seen = read(Image.fromarray(RAMP), tmp_path / "deep" / name)
    assert len(np.unique(seen)) == 256
    assert (seen[..., 0] == (RAMP / 257).round()).all()


def test_a_turned_photograph_is_read_upright(tmp_path):
    side = Image.new("RGB", (80, 40), RED)
    exif = side.getexif()
    exif[0x0112] = 6
    assert read(side, tmp_path / "turned" / "a.jpg", exif=exif).shape == (80, 40, 3)


def test_what_is_transparent_is_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    clear.paste((*RED, 255), (0, 0, 2, 4))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, *RED])
    palette.paste(1, (0, 0, 2, 4))
    grey = Image.new("LA", (4, 4), (7, 0))
    assert read(clear, tmp_path / "rgba" / "a.png")[0, [0, 3]].tolist() == [list(RED), list(WHITE)]
    seen = read(palette, tmp_path / "palette" / "a.png", transparency=0)
    assert seen[0, [0, 3]].tolist() == [list(RED), list(WHITE)]
    assert (read(grey, tmp_path / "grey" / "a.png") == 255).all()
    assert read(Image.new("CMYK", (4, 4)), tmp_path / "cmyk" / "a.jpg").min() > 250


def test_pictures_stand_in_the_order_that_captions_count_them_in(tmp_path):
    for number in (10, 2, 1, 0):
        Image.new("RGB", (8 + number, 8)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (30, 8)).save(tmp_path / "11.gif")
    (tmp_path / "._0.png").write_bytes(b"a Mac's note")
    assert [picture.width for picture in load_folder(tmp_path)] == [8, 9, 10, 18, 30]


def broken(path: Path) -> None:
    path.write_bytes(b"no picture")


def cut_off(path: Path) -> None:
    Image.fromarray(RAMP).save(path)
    path.write_bytes(path.read_bytes()[:200])


def huge(path: Path) -> None:
    Image.new("1", (14000, 14000)).save(path)


@pytest.mark.parametrize("spoil", [broken, cut_off, huge])
def test_a_picture_that_cannot_be_read_is_named_in_one_sentence(tmp_path, capsys, spoil):
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "0.png")
    spoil(tmp_path / "train" / "dog" / "0.png")
    data = load_data("folder", tmp_path, side=8)
    with pytest.raises(ValueError, match=r"dog/0\.png cannot be read"):
        _ = data.train[1]
    folder, output = str(tmp_path / "train" / "dog"), str(tmp_path / "out")
    assert main(["evaluate", folder, "--nudity", "true", "--output", output]) == 2
    said = capsys.readouterr().err
    assert "dog/0.png cannot be read" in said
    assert said.count("\n") == 1
