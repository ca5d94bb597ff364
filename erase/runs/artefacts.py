"""What `erase inspect`, `erase compose` and `erase export` do, as text and folders."""

from collections.abc import Iterable, Sequence
from inspect import getdoc
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from erase.attacks import attacks
from erase.core.delta import LowRankDelta
from erase.erasure.algebra import (
    compose,
    dare_merge,
    export_lora,
    interference,
    largest_rank,
    low_rank,
    ties_merge,
)
from erase.erasure.algebra import merge as added
from erase.erasure.erasure import Erasure
from erase.erasure.programs import Naming, Program, export_kohya, layers_read, naming_for
from erase.evaluate.layers import blocks_of
from erase.evaluate.tables import block_table, families_table, plain_table
from erase.methods import methods, serving
from erase.models.family import FAMILIES, family_of
from erase.models.opening import load_model
from erase.support.config import NotNegative, Share, require_kind
from erase.support.files import check_writable
from erase.tasks.classification.task import ClassificationTask
from erase.tasks.diffusion.task import DiffusionTask

WORST = 5
Format = Literal["pipeline", "lora", "comfy"]


def inspect(folders: Sequence[str]) -> str:
    """What each erasure holds and, for several, how each pair interferes."""
    erasures = {folder: Erasure.from_pretrained(folder) for folder in folders}
    parts = [f"{folder}\n{_summary(erasure)}" for folder, erasure in erasures.items()]
    for a, b in combinations(folders, 2):
        parts.append(f"{a} and {b}\n{_pair_text(erasures[a], erasures[b])}")
    return "\n\n".join(parts)


def compose_folders(
    folders: Sequence[str], output: str, sum: bool = False, merge: str = "", density: float = 0.2
) -> str:
    """Write the composition of the erasures in the order given, their sum, or their merge."""
    if merge:
        require_kind("merge", merge, Literal["ties", "dare"])
        require_kind("density", density, Share)
        if sum:
            raise ValueError("--sum and --merge join in two ways; leave one out.")
    check_writable(Path(output))
    erasures = [Erasure.from_pretrained(folder) for folder in folders]
    if merge:
        joint = (ties_merge if merge == "ties" else dare_merge)(erasures, density)
    else:
        joint = added(erasures) if sum else compose(erasures)
    joint.save_pretrained(output)
    return f"erasure: {output}"


def export(
    folder: str,
    output: str,
    model: str = "",
    lora_rank: int = 0,
    format: Format = "pipeline",
    program: Program | Literal[""] = "",
    **opening: str,
) -> str:
    """Write the erased pipeline, or a LoRA of at most `lora_rank`, 0 for as it is.

    A `program` is one that is to read the LoRA, by default ComfyUI. `opening` are fields of
    OpeningConfig, for the base. Raises ValueError for what cannot be written so.
    """
    require_kind("format", format, Format)
    if program:
        require_kind("for", program, Program)
        if format == "lora":
            raise ValueError("--for chooses the names of the LoRA; leave out --format lora.")
        format = "comfy"
    require_kind("lora_rank", lora_rank, NotNegative[int])
    if lora_rank and format == "pipeline":
        raise ValueError("A lora_rank is of no use to a pipeline; choose --format lora or comfy.")
    check_writable(Path(output))
    erasure = Erasure.from_pretrained(folder)
    if format == "lora":
        export_lora(erasure, output, lora_rank or largest_rank(erasure))
        lora = Erasure.from_pretrained(output)
        return f"LoRA: {output}\n{_lost(lora)}{_read_by(lora, 'stock')}"
    if format == "comfy":
        cut = low_rank(erasure, lora_rank) if lora_rank else erasure
        path = export_kohya(cut, output, program or "comfyui")
        naming = naming_for(program or "comfyui", cut.facts.base.family)
        return f"LoRA: {path}\n{_lost(cut)}{_read_by(cut, naming)}"
    noted = {} if model else erasure.facts.base.own_files
    said = {name: value for name, value in opening.items() if value}
    base = load_model(model or erasure.base_model, **noted | said)
    erasure.export_pipeline(base.pipeline, output)
    return f"pipeline: {Path(output)}"


def _lost(erasure: Erasure) -> str:
    """A line that says what a cut to a LoRA lost of the erasure, if it was cut."""
    if not (cut := erasure.facts.truncation):
        return ""
    left = f", {len(cut.left_out)} of its tensors left out" if cut.left_out else ""
    return f"relative error: {cut.relative_error}{left}\n"


def _read_by(erasure: Erasure, naming: Naming) -> str:
    """A line that says how many of the erasure's layers each program reads by these names."""
    read = layers_read(erasure.deltas, naming, erasure.facts.base.family)
    counts = ", ".join(f"{program} {count}" for program, count in read.items())
    return f"read of its {len(erasure.deltas)} layers: {counts}"


def list_methods() -> str:
    """A line a method: its name, whether it serves pipelines or classifiers, what it does."""
    kinds = {"pipelines": DiffusionTask, "classifiers": ClassificationTask}
    return _lines(
        (name, ", ".join(k for k, of in kinds.items() if issubclass(of, method.task)), method)
        for name, method in methods().items()
    )


def list_attacks() -> str:
    """A line an attack: its name, the families it serves, what it does."""
    return _lines(
        (name, " ".join(f for f in FAMILIES if attack.serves(FAMILIES[f])), attack)
        for name, attack in attacks().items()
    )


def _lines(rows: Iterable[tuple[str, str, Any]]) -> str:
    told = ((name, serves, getdoc(entry.function) or "") for name, serves, entry in rows)
    listed = [(name, serves, text.partition("\n")[0].rstrip(".")) for name, serves, text in told]
    wide = [max(len(row[i]) for row in listed) + 2 for i in (0, 1)]
    return plain_table(listed, [f"<{width}" for width in wide] + [""])


def list_families(model: str = "") -> str:
    """The known families: what may change in each, where text enters, and which methods apply.

    Of a `model` its own, and where that is none of them what the model's calls tell of it.
    """
    families = [family_of(load_model(model).pipeline)] if model else FAMILIES.values()
    told = [str(family.learned) for family in families if model and family.learned]
    return "\n".join([families_table(families, serving(DiffusionTask)), *told])


def _summary(erasure: Erasure) -> str:
    facts = erasure.facts
    ranks = [delta.rank for delta in erasure.deltas.values() if isinstance(delta, LowRankDelta)]
    lines = [
        f"forgets {', '.join(facts.concepts) or 'something'} by "
        f"{facts.method or 'an unnamed method'}, base {facts.base.model or 'unknown'}",
        f"{len(erasure.deltas)} tensors, {sum(d.count for d in erasure.deltas.values())} weights, "
        f"{erasure.nbytes / 1e6:.1f} MB" + (f", rank up to {max(ranks)}" if ranks else ""),
    ]
    blocks = [block_table(blocks_of(facts.layers))] if facts.layers else []
    return "\n".join([*lines, *blocks])


def _pair_text(one: Erasure, other: Erasure) -> str:
    rows = sorted(interference(one, other), key=lambda row: -abs(row["cosine"]))
    if not rows:
        return "change no tensor in common"
    mean = sum(abs(row["cosine"]) for row in rows) / len(rows)
    lines = [f"{len(rows)} tensors in common, mean |cosine| {mean:.3f}; the closest:"]
    for row in rows[:WORST]:
        facts = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if key != "tensor")
        lines.append(f"  {row['tensor']}: {facts}")
    return "\n".join(lines)
