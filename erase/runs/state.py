"""The one life of a run, what tells it from another, and where its training state lies."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from erase.core.delta import NotFiniteError
from erase.core.process import own_settings
from erase.erasure.erasure import RECIPE, Erasure
from erase.evaluate.base import protocol_hash
from erase.methods import get_method
from erase.support.distributed import launched
from erase.support.files import (
    alone,
    check_file_writable,
    check_writable,
    expanded,
    none_empty,
    replaced_file,
    replaced_folder,
)
from erase.tasks.base import Task
from erase.training.checkpoint import checkpoints_in
from erase.training.config import TrainedConfig, without_run_state
from erase.training.watch import require_runnable

LIBRARIES = ("torch", "diffusers", "transformers", "diffusers-erase")
Opened = TypeVar("Opened")
Done = TypeVar("Done")
Report = TypeVar("Report")


@own_settings()
def carry_out(
    output: str | Path,
    files: Sequence[str] | None,
    open_: Callable[[], Opened],
    work: Callable[[Opened], Done],
    write: Callable[[Opened, Done, Path], Report],
    digest_of: Callable[[Opened], str] | None = None,
    shares_write: bool = False,
) -> Report | None:
    """Live a run from its first refusal to its last file; what `write` returns.

    `output` must be a new folder, or one of these `files` that a run of the same digest wrote; if
    they are None, a new file. After that `open_` refuses the rest and resolves what the run needs.
    `work` is shared by all processes. Where a digest tells runs apart, its checkpoints lie beside
    `output` until the run is whole, so that an interrupted one goes on where it stopped. `write`
    fills a folder, or writes a file, that takes the name of `output` on success and goes on
    failure; the first process alone does, the others return None. If `shares_write`, they do too,
    into folders that go. A second run with the same output is refused meanwhile.
    """
    place, state = expanded(output).resolve(), None
    with alone(place) if launched().is_main_process else nullcontext():
        check_file_writable(place) if files is None else check_writable(place, files)
        opened = open_()
        if digest_of:
            digest = digest_of(opened)
            refuse_another_run(place, digest)
            state = place.parent / f".{place.name}.{digest}"
        # The lock of all checkpoints, which the same run takes again after it died.
        held = alone(state) if state and launched().is_main_process else nullcontext()
        with held, _cleared_if_broken(state), checkpoints_in(state):
            done = work(opened)
        if launched().is_main_process:
            whole = replaced_file(place) if files is None else replaced_folder(place, files)
            with whole as partial:
                report = write(opened, done, partial)
            if state:
                shutil.rmtree(state, ignore_errors=True)
            return report
        if shares_write:
            with tempfile.TemporaryDirectory() as goes:
                write(opened, done, Path(goes))
        return None


def require_method(run: Any, kind: type) -> None:
    """ValueError if a run's method is unknown, serves no such tasks, or has another's config."""
    method, given = get_method(run.method), run.method_config
    method.require_serves(kind)
    if given is not None and not isinstance(given, method.config):
        raise ValueError(
            f"method_config is a {type(given).__name__}, and {run.method} takes a "
            f"{method.config.__name__}; give that."
        )


def options_of(run: Any, kind: type) -> Any:
    """The config of a run's method; ValueError for what this machine or launch cannot do."""
    options = run.method_config or get_method(run.method).config()
    if isinstance(options, TrainedConfig):
        require_runnable(options.training, kind)
    return options


def run_digest(config: Any, task: Task) -> str:
    """What tells this run from any other: its config, the base's weights, its sets, our version."""
    options = config.method_config
    if isinstance(options, TrainedConfig):
        options = replace(options, training=without_run_state(options.training))
    same = asdict(replace(config, method_config=options))
    return protocol_hash([same, task.fingerprints(), version("diffusers-erase")])[:12]


def note_run(
    erasure: Erasure, digest: str, options: Any, request: Mapping[str, Any], **base: Any
) -> None:
    """Add to a method's recipe what the run knows: the request, the base, and what it ran with."""
    erasure.recipe |= {
        "run": digest,
        "base": erasure.recipe["base"] | base,
        "request": request,
        "config": asdict(options),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def refuse_another_run(output: Path, digest: str) -> None:
    """ValueError for a folder of another run: only the very same may write it again."""
    if not (output / RECIPE).exists():
        return
    if Erasure.from_pretrained(output).facts.run != digest:
        raise ValueError(f"The output {output} holds another run; name another --output.")


@contextmanager
def _cleared_if_broken(state: Path | None) -> Iterator[None]:
    """Training state does not outlive a run whose numbers broke, and none that is empty any."""
    with none_empty(state) if state else nullcontext():
        try:
            yield
        except NotFiniteError:
            if state:
                shutil.rmtree(state, ignore_errors=True)
            raise
