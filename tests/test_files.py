import ast
from pathlib import Path

import pytest

import erase
from erase.support.files import replaced_file, write_json, write_text

ROOT = Path(erase.__file__).parent


def fail_after_writing(path: Path) -> None:
    path.write_text("half", encoding="utf-8")
    raise RuntimeError


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "words.json"
    write_json(path, {"b": "é", "a": [1]})
    assert path.read_bytes() == b'{\n  "a": [\n    1\n  ],\n  "b": "\\u00e9"\n}\n'
    with pytest.raises(RuntimeError), replaced_file(path) as partial:
        fail_after_writing(partial)
    assert b'"a"' in path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert b'"a"' in path.read_bytes()
    assert [other.name for other in tmp_path.iterdir()] == ["words.json"]


def text_calls_without_encoding(path: Path) -> list[int]:
    """Lines that read or write text in whatever encoding the machine has."""
    calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (
            getattr(call.func, "attr", None) in {"read_text", "write_text"}
            or getattr(call.func, "id", None) == "open"
        )
        and "encoding" not in {word.arg for word in call.keywords}
    ]


def test_all_text_names_its_encoding():
    found = {
        str(path): lines
        for path in ROOT.rglob("*.py")
        if (lines := text_calls_without_encoding(path))
    }
    assert not found
