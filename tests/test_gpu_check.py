"""The one command for a new card, on the CPU."""

import json

from gpu_check import main

ONLY = ["--device", "cpu", "--only", "method uce", "prefix", "judge nudity"]


def test_every_part_is_a_row_with_its_time_and_memory(tmp_path, capsys):
    assert main([*ONLY, "--model", "sd1", "--dtypes", "bfloat16", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    rows = {(row["part"], row["on"], row["dtype"]): row for row in found["rows"]}
    asked = {"method uce", "attack prefix"}
    assert {part for part, on, dtype in rows if (on, dtype) == ("sd1", "bfloat16")} >= asked
    assert ("judge nudity", "other commands", "float32") in rows
    assert all(row["peak_memory_bytes"] > 0 <= row["seconds"] for row in rows.values())
    assert "| method uce | sd1 | bfloat16 |" in capsys.readouterr().out


def test_what_fails_is_a_row_that_says_why(tmp_path):
    assert main([*ONLY[:3], "none", "--model", "/no/such", "--out", str(tmp_path)]) == 1
    first, *others = json.loads((tmp_path / "gpu_check.json").read_text())["rows"]
    assert "The model /no/such could not be opened" in first["error"]
    assert [row["error"] for row in others] == ["", ""]
