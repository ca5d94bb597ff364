"""What the yardstick does inside a checkout: steps that are no command of `erase`, and its inputs.

Only here is it known where a checkout keeps things.
"""

import csv
import dataclasses
import importlib
import inspect
import json
import shutil
import socket
import subprocess
import sys
from argparse import SUPPRESS, Action
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yardstick_cases import BOTH, FAMILIES, PICTURES, SAMPLES, classifier

METHODS = (*PICTURES, *SAMPLES, *BOTH)
RATES = {"learning_rate": 1e-3, "anchored_rate": 1e-3}
CATALOGUE = {
    "objects": ["ghost", "skull", "pizza", "rocket"],
    "styles": ["ink", "noto"],
    "templates": ["{a} {object} in {style} style"],
    "synonyms": {"ghost": ["boo"]},
    "sampling": {"steps": 2, "guidance_scale": 2.0, "size": 16},
    "finetuning": {"object": RATES, "style": RATES},
}
PROMPTS = (
    ("prompt", "sd_seed", "sd_guidance_scale", "class", "group"),
    ("a ghost", 7, 4, "ghost", "erased"),
    ("a pizza", 8, 2, "pizza", "others"),
    ("a boo, in ink style", 9, 4, "ghost", "erased"),
)
NEEDED = {"forget": "class:3", "output": "out", "count": "1"}


def find(*places: str) -> Any:
    """The first of several `module:name` that is there; ImportError if none is."""
    for place in places:
        module, name = place.split(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"There is none of {', '.join(places)}.")


def command_line(*words: str) -> int:
    """`erase` with these words."""
    return find("erase.cli:main")(list(words))


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """What the command line makes of the words; SystemExit if it refuses them."""
    build = find("erase.cli:build_parser", "erase.cli_parsers:build_parser")
    if inspect.signature(build).parameters:
        return build(words[0], words[1:]).parse_args(list(words[1:])).as_dict()
    return build().parse_args(list(words))[words[0]].as_dict()


def accepted(words: Sequence[str]) -> bool:
    """Whether the command line takes the words."""
    try:
        parsed(words)
    except SystemExit:
        return False
    return True


def launched(*words: str) -> int:
    """`accelerate launch` with the options before the word "run", and `erase` with the rest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    split = words.index("run")
    launch = [sys.executable, "-m", "accelerate.commands.launch", *words[:split]]
    launch += ["--main_process_port", port, "-m", "erase", *words[split:]]
    return subprocess.run(launch, timeout=800).returncode


def same(one: str, other: str) -> int:
    """0 for two equal files, else 1."""
    return int(Path(one).read_bytes() != Path(other).read_bytes())


def tiny(family: str) -> int:
    """Every diffusion method on the tiny pipeline of a family, two steps where it trains."""
    import torch
    from diffusers import DiffusionPipeline

    import erase

    build_task = find("hosts:build_tiny_task", "conftest:build_tiny_task")
    for name in (*PICTURES, *BOTH):
        method = erase.methods()[name]
        config = method.config(**({"mask_file": "mask"} if name == "salun" else {}))
        if hasattr(config, "training"):
            training = dataclasses.replace(config.training, max_train_steps=2)
            config = dataclasses.replace(config, training=training)
        pipeline = DiffusionPipeline.from_pretrained(f"inputs/{family}", dtype=torch.float32)
        method(build_task(pipeline, (), 16), config).save_pretrained(name)
    return 0


def public(*folders: str) -> int:
    """The package's names, its methods' defaults, and its algebra on two erasures."""
    import erase

    configs = {name: dataclasses.asdict(m.config()) for name, m in erase.methods().items()}
    pair = [erase.Erasure.from_pretrained(folder) for folder in folders]
    erase.difference(erase.merge(pair), erase.compose(pair)).save_pretrained("difference")
    erase.scale(pair[0], 0.5).save_pretrained("scaled")
    model = erase.load_model("inputs/sd1")
    with pair[1].apply(model.pipeline.components, 0.5):
        model.pipeline.save_pretrained("applied")
    found = {
        "names": sorted(erase.__all__), "defaults": configs,
        "interference": erase.interference(*pair),
    }  # fmt: skip
    Path("public.json").write_text(json.dumps(found))
    return 0


def flags() -> int:
    """Which flags of the inputs are accepted."""
    found = {}
    for command, (needed, words) in json.loads(Path("inputs/flags.json").read_text()).items():
        # In this order what is refused of every method lies together, which takes fewer trials.
        by_field = sorted(words, key=lambda word: word.split("=")[0].split(".")[::-1])
        found[command] = _told([command, *needed], by_field)
    Path("flags.json").write_text(json.dumps(found))
    return 0


def _told(base: Sequence[str], words: Sequence[str]) -> dict[str, bool]:
    """Whether each word is accepted: all at once, or else by halves."""
    all_are = accepted([*base, *words])
    if all_are or len(words) < 2:
        return dict.fromkeys(words, all_are)
    middle = len(words) // 2
    return _told(base, words[:middle]) | _told(base, words[middle:])


def configs() -> int:
    """The YAMLs of the inputs, and of the checkout where they differ, as they are parsed."""
    known, own = Path("inputs/configs"), _checkout() / "configs"
    found = {}
    for path in sorted(known.rglob("*.yaml")):
        name = path.relative_to(known)
        found[str(name)] = _config(path)
        if not (own / name).exists():
            found[f"{name}, own"] = None
        elif (own / name).read_bytes() != path.read_bytes():
            found[f"{name}, own"] = _config(own / name)
    Path("configs.json").write_text(json.dumps(found, default=str))
    return 0


def _config(path: Path) -> Any:
    """What a YAML says, without the options of methods that it does not choose."""
    if path.parent.name == "accelerate":
        return yaml.safe_load(path.read_text())
    command = "protocol" if path.parent.name == "protocols" else "run"
    output = f"--output={NEEDED['output']}"
    options = parsed([command, f"--config={path}", output])
    unused = {"config", *METHODS} - {options.get("method")}
    return {key: value for key, value in options.items() if key not in unused}


def _checkout() -> Path:
    return Path(find("erase:__file__")).parents[1]


def inputs() -> int:
    """Write what all cases start from into the folder `inputs`, by the checkout's own means."""
    folder, bundled = Path("inputs"), _checkout() / "erase" / "bundled"
    build_family = find("tiny_families:build_family")
    for family in FAMILIES:
        build_family(family).save_pretrained(folder / family)
        (folder / family / "concepts.json").write_text(json.dumps(CATALOGUE))
    build_family("sd1").save_pretrained(folder / "plain")
    shutil.copytree(bundled / "judge", folder / "judge")
    shutil.copytree(bundled / "emoji", folder / "emoji")
    shutil.copytree(_checkout() / "configs", folder / "configs")
    concepts = json.loads((folder / "emoji" / "concepts.json").read_text())
    concepts["sampling"]["steps"] = 2
    (folder / "emoji" / "concepts.json").write_text(json.dumps(concepts))
    _write_pictures(folder)
    with (folder / "prompts.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows(PROMPTS)
    (folder / "flags.json").write_text(json.dumps(_flags_with_values()))
    # The classifier's weights are written where its cases read them.
    fit = "--classifier.fit.epochs=10", "--classifier.fit.batch_size=16"
    words = classifier("classify", "finetune", "--forget=class:3", "--output=out", *fit)
    return command_line(*words)


def _write_pictures(folder: Path) -> None:
    from PIL import Image
    from skimage.data import astronaut, chelsea, coffee

    for name, side in (("pictures", 256), ("references", 200)):
        (folder / name).mkdir()
        for number, array in enumerate((astronaut(), chelsea(), coffee())):
            picture = Image.fromarray(array).resize((side, side))
            picture.save(folder / name / f"{number}.png")
    (folder / "captions.txt").write_text("a woman\na cat face\na cup\n")


def _flags_with_values() -> dict[str, tuple[list[str], list[str]]]:
    """By command: the words it needs, and every flag with a value it takes."""
    build, found = find("erase.cli:build_parser", "erase.cli_parsers:build_parser"), {}
    if inspect.signature(build).parameters:
        parsers = {name: build(name) for name in find("erase.cli:COMMANDS")}
    else:
        parsers = build()._subcommands_action._name_parser_map
    for command, options in parsers.items():
        needed, words = [], []
        for action in options._actions:
            if not action.option_strings:
                needed.append("x")
            elif action.required:
                needed.append(f"{action.option_strings[0]}={NEEDED[action.dest]}")
            elif action.dest not in ("help", "config", "print_config"):
                value = "" if action.nargs == 0 else f"={_value(action)}"
                words += [f"{flag}{value}" for flag in action.option_strings if flag[-1] != "+"]
        found[command] = needed, words
    return found


def _value(action: Action) -> str:
    """The default, or some value where there is none, as a word."""
    if action.default == SUPPRESS:
        return "{}"
    if action.nargs:
        return str([*action.default, "x"][0])
    return action.default if isinstance(action.default, str) else json.dumps(action.default)


STEPS: Mapping[str, Callable[..., int]] = {
    "erase": command_line,
    "stopped": command_line,
    "launched": launched,
    "same": same,
    "tiny": tiny,
    "public": public,
    "flags": flags,
    "configs": configs,
    "inputs": inputs,
}
