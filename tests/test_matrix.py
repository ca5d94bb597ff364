import pytest
import torch
from hosts import CATALOGUE

from erase.bundled import JUDGE
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.matrix import Matrix, canvas_matrix, save_heat_maps, ua_ira_cra
from erase.prompts.catalogue import Concept

OBJECTS = torch.tensor([[1, 0], [1, 1], [0, 1]]).bool()
STYLES = torch.tensor([[1, 1], [0, 1], [1, 1]]).bool()
MATRIX = Matrix(["ghost", "skull", "pizza"], ["ink", "noto"], OBJECTS, STYLES)


def test_an_erased_object_is_scored_by_its_row():
    found = ua_ira_cra(MATRIX, [Concept("ghost", "object")])
    assert found == pytest.approx({"UA": 0.5, "IRA": 3 / 4, "CRA": 3 / 4})


def test_an_erased_style_is_scored_by_its_column():
    found = ua_ira_cra(MATRIX, [Concept("ink", "style")])
    assert found == pytest.approx({"UA": 1 / 3, "IRA": 1.0, "CRA": 2 / 3})


def test_where_both_kinds_are_erased_only_untouched_cells_are_kept():
    found = ua_ira_cra(MATRIX, [Concept("ghost", "object"), Concept("ink", "style")])
    assert found == pytest.approx({"UA": 1 - 3 / 5, "IRA": 1.0})


def test_what_no_cell_was_drawn_for_has_no_figure():
    everything = [Concept(name, "object") for name in MATRIX.objects]
    assert ua_ira_cra(MATRIX, everything) == pytest.approx({"UA": 1 - 4 / 6})


def test_every_cell_is_drawn_and_mapped(tiny_pipeline, tmp_path):
    judge = ClipJudge(f"local-dir:{JUDGE}")
    matrix = canvas_matrix(tiny_pipeline, CATALOGUE, judge, CATALOGUE.sampling)
    assert matrix.object_seen.shape == matrix.style_seen.shape == (4, 2)
    assert not matrix.object_seen.isnan().any()
    save_heat_maps({"base": matrix, "erased": matrix}, tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 1000


def test_of_a_sparse_matrix_the_erased_cells_are_whole(tiny_pipeline):
    judge, ghost = ClipJudge(f"local-dir:{JUDGE}"), [Concept("ghost", "object")]
    full, sparse = (
        canvas_matrix(tiny_pipeline, CATALOGUE, judge, CATALOGUE.sampling, every, ghost)
        for every in (1, 4)
    )
    drawn = ~sparse.object_seen.isnan()
    row = CATALOGUE.objects.index("ghost")
    assert drawn[row].all()
    assert drawn.sum() < drawn.numel()
    assert torch.equal(sparse.object_seen[drawn], full.object_seen[drawn])
    assert ua_ira_cra(sparse, ghost)["UA"] == ua_ira_cra(full, ghost)["UA"]
    assert 0 <= ua_ira_cra(sparse, ghost)["IRA"] <= 1
