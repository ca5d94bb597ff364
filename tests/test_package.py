import subprocess
import sys
from pathlib import Path

import erase

ROOT = Path(erase.__file__).parents[1]
BUILD = """
import sys
from setuptools import setup
setup(script_args=["egg_info", "--egg-base", sys.argv[1], "build_py", "--build-lib", sys.argv[2]])
"""


def files_under(folder: Path) -> set[Path]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path for path in found if "__pycache__" not in path.parts}


def test_an_installed_package_holds_every_file_of_a_checkout(tmp_path):
    built, facts = tmp_path / "built", tmp_path / "facts"
    facts.mkdir()
    subprocess.run(
        [sys.executable, "-c", BUILD, facts, built], cwd=ROOT, check=True, capture_output=True
    )
    own = {Path("erase") / path for path in files_under(ROOT / "erase")}
    own |= {Path("erase/pipelines") / path for path in files_under(ROOT / "pipelines")}
    assert files_under(built) == own
