"""What models do that never saw a concept, and what the judge makes of their pictures.

Run: `python benchmarks/oracles.py --run FOLDER --out oracles`, where FOLDER is that of
`scripts/train_oracles.py`. For every oracle that stands there: accuracies on prompts that name its
concepts and on those that do not, how often the judge sees a concept in pictures of anything else
(which the oracle cannot have drawn), all drawn in bfloat16 autocast; an observation to measure
distances to, in float32; and a grid, forgotten prompts first. Figures go to results/oracles.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from canvas_bench import bfloat16, real_pictures
from observation import observe

from erase.evaluate.base import Judge
from erase.evaluate.pictures.generation import EvaluationConfig, draw_evaluation, judge_drawn
from erase.evaluate.pictures.judges import judge_of
from erase.evaluate.reports import wilson_share
from erase.models.opening import Model, load_model
from erase.prompts.catalogue import Concept
from erase.prompts.request import EraseRequest, expand, find_concept
from erase.support.pictures import save_grid

ORACLES = {"ghost": ["ghost"], "ink": ["ink style"], "weapons": ["dagger", "bomb"]}
RESULTS = Path(__file__).parent / "results" / "oracles.json"
MEASURED, SHOWN = EvaluationConfig(256, 128), 32


def measured(
    oracle: Model, base: Model, judge: Judge, concepts: Sequence[Concept], out: Path
) -> dict[str, Any]:
    """Accuracies and the judge's errors; the observation and a grid are written beside `out`."""
    prompts = expand(EraseRequest([str(concept) for concept in concepts]), base.catalogue)
    with bfloat16():
        drawn = draw_evaluation(oracle.pipeline, prompts, base.sampling, MEASURED, out.name)
    shown = torch.cat([drawn.pictures[: 2 * SHOWN], drawn.pictures[-2 * SHOWN :]])
    save_grid(shown, out.with_suffix(".png"), SHOWN)
    real = real_pictures(concepts, base.catalogue)
    seen = observe(oracle.pipeline, prompts, real, base.sampling, judge, EvaluationConfig())
    seen.save(out.with_suffix(".safetensors"))
    (kind,) = {concept.kind for concept in concepts}
    labels, names = prompts.labels[kind], {concept.name for concept in concepts}
    elsewhere = judge.classify(judge.embed(drawn.pictures[drawn.forget_count :]), kind, labels)
    return judge_drawn(drawn, judge, prompts.labels).to_json() | {
        "concept_seen_elsewhere": wilson_share([name in names for name in elsewhere]).to_json(),
        "chance": 1 / len(labels),
    }


def main() -> None:
    """Measure what oracles there are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    base = load_model("emoji")
    judge = judge_of("", base.catalogue)
    figures = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name, asked in ORACLES.items():
        folder = args.run / name / "model"
        if folder.exists():
            oracle = load_model(str(folder))
            concepts = [find_concept(one, base.catalogue) for one in asked]
            figures[name] = measured(oracle, base, judge, concepts, args.out / name)
            print(name, json.dumps(figures[name]), flush=True)
    RESULTS.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
