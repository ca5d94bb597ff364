"""What tells one run from another, and where its training state lies until it is whole."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from erase.core.delta import NotFiniteError
from erase.erasure.erasure import RECIPE, Erasure
from erase.tasks.base import Task
from erase.training.config import without_run_state

LIBRARIES = ("torch", "diffusers", "transformers", "diffusers-erase")


def run_digest(config: Any, task: Task) -> str:
    """What tells this run from any other: its config, the base's weights, its sets, our version."""
    options = config.method_config
    if hasattr(options, "training"):
        options = replace(options, training=without_run_state(options.training))
    same = asdict(replace(config, method_config=options))
    record = [same, task.fingerprints(), version("diffusers-erase")]
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def refuse_another_run(output: Path, digest: str) -> None:
    """A folder may be written again by the very same run only."""
    if not (output / RECIPE).exists():
        return
    if Erasure.from_pretrained(output).recipe.get("run") != digest:
        raise ValueError(f"The output {output} holds another run; name another --output.")


def state_folder(options: Any, output: Path, digest: str) -> Path:
    """Where one run's training state goes: beside `output`, or where its config says."""
    chosen = getattr(getattr(options, "training", None), "checkpoints", "")
    return Path(chosen or output.parent) / f".{output.name}.{digest}"


def with_checkpoints(options: Any, state: Path | None) -> Any:
    """The method's config with its training state in `state`, or nowhere, if it trains."""
    if not hasattr(options, "training"):
        return options
    return replace(options, training=replace(options.training, checkpoints=str(state or "")))


@contextmanager
def cleared_if_broken(state: Path) -> Iterator[None]:
    """Training state does not outlive a run whose numbers broke, nor does a folder made for it."""
    had_parent = state.parent.exists()
    try:
        yield
    except NotFiniteError:
        shutil.rmtree(state, ignore_errors=True)
        if not had_parent and state.parent.exists() and not any(state.parent.iterdir()):
            state.parent.rmdir()
        raise


def versions() -> dict[str, str]:
    """The versions that a recipe names."""
    return {name: version(name) for name in LIBRARIES}
