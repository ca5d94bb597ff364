"""Names from files, and reports of long lists."""

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hosts import CATALOGUE, build_tiny_pipeline

from erase.cli import main
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.generation import EvaluationPictures
from erase.evaluate.pictures.report import write_report
from erase.evaluate.reports import Cost, Metrics, Report, wilson_share
from erase.evaluate.tables import CONCEPTS, WORST, measured_lines, metric_rows, summary_table
from erase.models.opening import load_model
from erase.prompts.names import listed, listed_pairs
from erase.prompts.request import EraseRequest, Prompt, expand
from erase.tasks.diffusion.task import DiffusionTask


def written(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return f"@{path}"


def test_a_file_stands_for_its_lines_among_other_names(tmp_path):
    names = written(
        tmp_path, "names.txt", "\ufeffghost\r\n\n# spirits above\nVan  Gogh, painter\r\n"
    )
    assert listed(["dog", names, "cat"]) == ["dog", "ghost", "Van Gogh, painter", "cat"]


@pytest.mark.parametrize(
    "text",
    [
        'concept,anchor\nghost,skull\n\n"Gogh, van",Monet\n',
        'ghost;skull\n"Gogh, van";Monet\n',
        "Concept; anchor\r\nghost;skull\r\nGogh, van;Monet\r\n",
    ],
)
def test_a_csv_file_names_anchors_beside_concepts(tmp_path, text):
    names = written(tmp_path, "names.csv", text)
    concepts, anchors = listed_pairs([names])
    assert [*concepts, *anchors] == ["ghost", "Gogh, van", "skull", "Monet"]
    assert EraseRequest.from_lists([names]).anchors == ("skull", "Monet")


def test_thousands_of_lines_are_one_request(tmp_path):
    names = written(tmp_path, "names.txt", "".join(f"name {i}\n" for i in range(5000)))
    kept = written(tmp_path, "kept.csv", "".join(f"other {i}\n" for i in range(5000)))
    request = EraseRequest.from_lists([names], retain=[kept], seed=3)
    assert (len(request.concepts), len(request.retain), request.seed) == (5000, 5000, 3)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.txt", None, "none.txt cannot be read (No such file"),
        ("empty.txt", "\n # nothing\n", "holds no names"),
        ("head.csv", "concept,anchor\n", "holds no names"),
        ("twice.txt", "Ghost\npizza\nghost \n", "names ghost twice, in rows 1 and 3"),
        ("latin.txt", "caf\u00e9".encode("latin-1"), "no UTF-8 text"),
        ("binary.txt", b"a\0b", "no text"),
        ("wide.csv", "ghost,skull\npizza,lemon,3\n", "Row 2 of"),
        ("lone.csv", "ghost,skull\npizza\n", "1 of 2 concepts have an anchor, and pizza has none"),
        ("blank.csv", ",skull\n", "has no name"),
        ("both.csv", "ghost;skull\nGogh, van;Monet\n", "commas and semicolons; put names"),
        ("open.csv", 'ghost,skull\n"Gogh, van,Monet\nhat,cap\n', "no CSV file (unexpected end"),
        ("long.csv", f"ghost,{'x' * (1 << 18)}", "no CSV file (field larger"),
        ("huge.txt", "x" * (1 << 23), "larger than 4 MB"),
    ],
)
def test_what_is_no_list_is_refused_in_a_sentence(tmp_path, name, text, said):
    word = f"@{tmp_path / name}" if text is None else written(tmp_path, name, text)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        EraseRequest.from_lists([word])
    assert "\n" not in str(refused.value)


def test_a_folder_and_a_second_column_of_what_is_kept_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no plain file"):
        listed([f"@{tmp_path}"])
    with pytest.raises(ValueError, match="2 columns; give one name"):
        listed([written(tmp_path, "kept.csv", "dog,cat\n")])
    names = written(tmp_path, "names.csv", "ghost,skull\n")
    with pytest.raises(ValueError, match="names anchors too"):
        EraseRequest.from_lists([names], ["skull"])


def test_no_request_reads_a_file_by_itself(tmp_path):
    secret = written(tmp_path, "secret.txt", "ghost\n")
    recipe = {"request": asdict(EraseRequest(["ghost"])) | {"concepts": [secret]}}
    for ask in (lambda: EraseRequest([secret]), lambda: Erasure({}, recipe).facts.asked()):
        with pytest.raises(ValueError, match="only the command line"):
            ask()


def test_a_run_takes_lists_from_the_command_line_and_from_yaml(tmp_path, capsys):
    build_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    names = written(tmp_path, "names.csv", "concept,anchor\nghost,skull\npizza,rocket\n")
    (tmp_path / "run.yaml").write_text(f"concept: ['{names}']\nmethod: uce\n")
    common = [f"--model={tmp_path / 'tiny'}", "--no_evaluation"]
    for place, words in (("a", ["--concept", names, "--method=uce"]),
                         ("b", [f"--config={tmp_path / 'run.yaml'}"])):  # fmt: skip
        assert main(["run", *common, *words, f"--output={tmp_path / place}"]) == 0
        asked = Erasure.from_pretrained(tmp_path / place).facts.asked()
        assert (asked.concepts, asked.anchors) == (("ghost", "pizza"), ("skull", "rocket"))
    assert main(["run", *common, "--concept", "@gone.txt"]) == 2
    assert "The list gone.txt cannot be read" in capsys.readouterr().err


def long_report(count: int) -> Report:
    def seen(shown: int) -> Metrics:
        shares = {f"name {i}": wilson_share([i < shown]) for i in range(count)}
        return Metrics(wilson_share([False] * 4), shares, wilson_share([True] * 4))

    metrics = {"base": seen(count), "erased": seen(3)}
    concepts = {"concepts": [f"name {i}" for i in range(count)]}
    return Report(concepts, "uce", {"steps": 2}, metrics, Cost(1.0, 2, 3, 4))


def test_the_table_of_a_long_list_has_the_worst_and_a_file_has_all(tmp_path):
    report = long_report(100)
    rows = [name for name, *_ in metric_rows(report) if name.startswith("forget name")]
    assert len(rows) == WORST
    assert {"forget name 0", "forget name 1", "forget name 2"} == set(rows[:3])
    for text in (measured_lines(report), summary_table(report)):
        assert f"Of 100 concepts the {WORST} that show most; {CONCEPTS} has all." in text
    prompts = [Prompt("a", {}, ()), Prompt("b", {}, ())]
    drawn = {name: EvaluationPictures(torch.zeros(2, 3, 8, 8), prompts, 1)
             for name in report.metrics}  # fmt: skip
    write_report(report, drawn, tmp_path)
    assert (
        (tmp_path / "report.md")
        .read_text()
        .startswith("# name 0, name 1, name 2, name 3, 96 more: how far")
    )
    with open(tmp_path / CONCEPTS, newline="") as opened:
        head, *found = csv.reader(opened)
    assert head == ["concept", "base", "erased", "n"]
    assert [row[0] for row in found[:3]] == ["name 0", "name 1", "name 2"]
    assert len(found) == 100


def test_a_short_list_has_no_such_file(tmp_path):
    report = replace(long_report(3), protocol={})
    drawn = {name: EvaluationPictures(torch.zeros(2, 3, 8, 8), [Prompt("a", {}, ())] * 2, 1)
             for name in report.metrics}  # fmt: skip
    write_report(report, drawn, tmp_path)
    assert not (tmp_path / CONCEPTS).exists()
    assert "that show most" not in measured_lines(report)


def test_steps_and_pictures_grow_slower_than_the_list():
    model = load_model("emoji")

    def counts(*names: str) -> tuple[int, int]:
        prompts = expand(EraseRequest(names), model.catalogue)
        known = model.pipeline, prompts, model.sampling
        task = DiffusionTask(*known, finetuning=model.finetuning(prompts))
        return task.finetuning.anchored_steps, task.config.forget_pictures

    one, four = counts("ghost"), counts("ghost", "crown", "camera", "bell")
    assert one == (model.catalogue.finetuning["object"].anchored_steps, 32)
    assert four == (2 * one[0], 64)
