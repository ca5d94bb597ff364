import ast
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Thread

import pytest
from safetensors import SafetensorError

import erase
from erase.cli import STOPPED
from erase.support.errors import sentence
from erase.support.files import (
    alone,
    put_back,
    replaced_file,
    replaced_folder,
    write_json,
    write_text,
)

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


def test_the_disk_holds_all_that_takes_a_name(tmp_path, monkeypatch):
    synced, sync, rename, replace = set(), os.fsync, os.rename, os.replace

    def noted(opened: int) -> None:
        sync(opened)
        synced.add(os.fstat(opened).st_ino)

    def checked(move):
        def moved(source: Path, target: Path) -> None:
            named.append(Path(target).name)
            inside = source.rglob("*") if Path(source).is_dir() else ()
            assert {path.stat().st_ino for path in (Path(source), *inside)} <= synced
            move(source, target)

        return moved

    named = []
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", checked(rename))
    monkeypatch.setattr(os, "replace", checked(replace))
    with replaced_folder(tmp_path / "out") as partial:
        (partial / "within").mkdir()
        (partial / "within" / "a").write_text("half", encoding="utf-8")
    write_text(tmp_path / "b", "words")
    assert named == ["out", "b"]
    assert tmp_path.stat().st_ino in synced  # and the names themselves


FULL = OSError(errno.ENOSPC, "No space left on device")
GONE = FileNotFoundError(errno.ENOENT, "No such file or directory")
RUST = SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
NAMELESS = OSError("encoder error -2 when writing image file")


@pytest.mark.parametrize("error", [FULL, GONE, RUST, NAMELESS], ids=lambda error: type(error))
@pytest.mark.parametrize("replaced", [replaced_folder, replaced_file])
def test_a_disk_that_fails_is_told_by_the_name_of_the_output(replaced, error, tmp_path):
    with pytest.raises(OSError, match="out") as told, replaced(tmp_path / "deep" / "out"):
        raise error
    assert sentence(told.value).startswith(f"{tmp_path / 'deep' / 'out'} cannot be")
    assert ("make room" in sentence(told.value)) == (error in (FULL, RUST))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_took_away_is_put_back(tmp_path):
    with replaced_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.partial").mkdir()
    assert (put_back(tmp_path / "out") / "a").exists()
    with replaced_folder(tmp_path / "out", ["a"]) as partial:
        (partial / "a").write_text("new", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_one_output_is_of_one_at_a_time(tmp_path):
    said = []

    def another() -> None:
        try:
            write_output()
        except ValueError as error:
            said.append(str(error))

    def write_output() -> None:
        with replaced_folder(tmp_path / "out") as partial:
            (partial / "a").touch()

    with alone(tmp_path / "out"):
        write_output()  # who is there may come again
        thread = Thread(target=another)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert "Another run is writing" in said[0]


def test_who_is_in_a_place_needs_no_lock_inside_it(tmp_path, monkeypatch):
    """So that no checkpoint's own lock is left by a run that was killed while it wrote it."""
    locks = tmp_path / "locks"
    locks.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(locks))
    with alone(tmp_path / "run"):
        held = list(locks.iterdir())
        with replaced_folder(tmp_path / "run/state/checkpoint-2"):
            assert list(locks.iterdir()) == held
    assert len(held) == 1
    assert not list(locks.iterdir())


STOPPING = """
import os, signal
from erase.cli import leave, on_stop
on_stop(leave)
os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_before_any_work_is_one_sentence(name):
    command = [sys.executable, "-c", STOPPING.format(name=name)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == f"erase: {STOPPED}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a stream that is always full")
def test_words_that_nobody_reads_are_no_traceback():
    script = "from erase.cli import drop_unread, tell; code = tell('done'); drop_unread(); "
    command = [sys.executable, "-c", script + "raise SystemExit(code)"]
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        outcomes = [subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
                    for out in (writer, full)]  # fmt: skip
    os.close(writer)
    assert [ended.returncode for ended in outcomes] == [0, 2]
    assert outcomes[0].stderr == ""
    assert outcomes[1].stderr.startswith("erase: It is done, but what it says cannot be written")


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
