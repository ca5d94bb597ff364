"""The subcommands: what each is called, what it asks, and what it does."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Work = Callable[["Namespace"], str]
Says = Callable[[Any, "Namespace"], str]  # of what a run returned
Flags = Mapping[str, Mapping[str, Any]]  # by name, as of argparse's add_argument


@dataclass(frozen=True)
class Command:
    """A subcommand: its line in the help, what it does, which is what it says, and its options.

    configs: `module:class`, or what makes one; all fields but those to skip are options. kind: what
    it takes that has options of its own, a method or attacks. config_file: whether options may come
    from a YAML file.
    """

    text: str
    work: Work
    flags: Flags = field(default_factory=dict)
    configs: Sequence[str] = ()
    skip: Sequence[str] = ()
    kind: str = ""
    config_file: bool = False

    def add_options(self, parser: "ArgumentParser") -> None:
        """Import what the options are of, and add them."""
        for name, how in self.flags.items():
            parser.add_argument(name, **how)
        for place in self.configs:
            kind = _at(place)
            kind = kind if isinstance(kind, type) else kind()
            parser.add_class_arguments(kind, skip={"method_config", *self.skip})


def _at(place: str) -> Any:
    """What lies at `module:name`, which nothing imports before it is asked for."""
    module, name = place.split(":")
    return getattr(import_module(f"erase.{module}"), name)


def _made(config: type, options: "Namespace", **chosen: Any) -> Any:
    """The config of the options, with the configs of its method or attacks."""
    from erase.attacks import attacks
    from erase.methods import get_method
    from erase.support.options import made

    if "method" in options:
        chosen["method_config"] = options[get_method(options.method).name]
    if "attacks" in options:
        chosen["configs"] = {name: options[name] for name in attacks() if name in options}
    return made(config, options, **chosen)


def _run_of(
    text: str, place: str, says: Says, flags: Flags, *skip: str, kind: str = "", **more: bool
) -> Command:
    """A subcommand that carries out a run, `module:config:function`.

    The function takes the config, and --output where there is one.
    """
    module, *names = place.split(":")
    config, function = (f"{module}:{name}" for name in names)

    def work(options: "Namespace") -> str:
        output = [options.output] if "output" in options else []
        return says(_at(function)(_made(_at(config), options), *output), options)

    return Command(text, work, flags, (config,), skip, kind, **more)


def said_of(report: Any, table: Callable[[Any], str], file: Path) -> str:
    """What a run says of its report; the process that has none says nothing."""
    return f"{table(report)}\nreport: {file}" if report else ""


def _table(name: str, file: str) -> Says:
    """Says the table that evaluate/tables.py makes of a report, and where the report is."""
    return lambda report, options: said_of(
        report, _at(f"evaluate.tables:{name}"), Path(options.output) / file
    )


_figures = _table("figure_lines", "evaluation.json")


def _measured(report: Any, folder: Path) -> str:
    paths = f"report:  {folder / 'report.md'}\npicture: {folder / 'grid.png'}"
    return f"{_at('evaluate.tables:summary_table')(report)}\n{paths}" if report else ""


def _found(found: Any, _: "Namespace") -> str:
    return f"{found}\nuse --{found.method}.{found.setting} {found.value:g}" if found else ""


def _chosen(indices: Sequence[int], options: "Namespace") -> str:
    return f"{len(indices)} indices: {options.output}" if indices else ""


def _run(options: "Namespace") -> str:
    from erase.prompts.request import PLAIN_TEMPLATES, EraseRequest
    from erase.runs.erase import RunConfig, open_run, run
    from erase.runs.opening import kept_prompts
    from erase.runs.plan import plan

    request = EraseRequest.from_lists(
        options.concept, options.anchor, options.retain,
        templates=tuple(options.template) or PLAIN_TEMPLATES,
        redirect=options.redirect, seed=options.seed,
    )  # fmt: skip
    task = replace(options.task, keep=kept_prompts(options.task.keep))
    config = _made(
        RunConfig, options, request=request, task=task, evaluate=not options.no_evaluation
    )
    if options.dry_run:
        opened = open_run(config)
        return plan(config, opened.model, opened.task)
    output = Path(options.output or _default_output(request.concepts, config.method))
    report = run(config, output)
    return _measured(report, output) if config.evaluate else f"erasure: {output}"


def _default_output(concepts: Sequence[str], method: str) -> str:
    from erase.prompts.names import shortened

    names = shortened(concepts, "+").strip().lower().replace(" ", "-")
    return f"out/{names}-{method}".replace("..", "")


def _evaluate(options: "Namespace") -> str:
    from erase.runs.evaluate import evaluate, evaluation_config, rescore

    if options.rescore:
        return json.dumps(rescore(options.folder, options.threshold, options.classes), indent=2)
    if not options.output:
        raise ValueError("There is no --output; name a new folder.")
    asked = _made(evaluation_config(), options)
    report = evaluate(options.folder, asked, options.output, options.device)
    return _figures(report, options)


def _artefacts(name: str) -> Work:
    """The function of that name in runs/artefacts.py, given the options as they are called."""
    return lambda options: _at(f"runs.artefacts:{name}")(**options.as_dict())


def _text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": str, "help": said, **more}


def _switch(said: str) -> dict[str, Any]:
    return {"type": bool, "default": False, "help": said}


def _list(said: str, **more: Any) -> dict[str, Any]:
    return {"type": str, "nargs": "+", "default": [], "help": said, **more}


FOLDER: Flags = {"erasure": _text("an erasure folder", metavar="folder")}
NEW: Flags = {"--output": _text("a new folder", required=True)}
COMMANDS = {
    "run": Command(
        "erase concepts, measure the result, write a report", _run,
        {
            "--concept": _list("what to forget: ghost 'ink style' @names.txt @names.csv"),
            "--anchor": _list("what to draw instead, one a concept"),
            "--retain": _list("what must stay, or @names.txt; needed without concepts.json"),
            "--template": _list("prompts with {concept}, for models without concepts.json"),
            "--no_evaluation": _switch("draw and judge nothing; see erase measure"),
            "--output": _text("by default out/CONCEPTS-METHOD", default=""),
            "--dry_run": _switch("tell the plan and do nothing"),
        },
        ("prompts.request:EraseRequest", "runs.erase:RunConfig"),
        ("concepts", "anchors", "retain", "templates", "request", "evaluate"), "method", True,
    ),
    "measure": _run_of(
        "draw and judge what an erasure does, where its run did not",
        "runs.measure:MeasureRun:measure",
        lambda report, options: _measured(report, Path(options.erasure)), FOLDER, "erasure",
    ),
    "harden": _run_of(
        "noise an erased model's weights and learn the rest anew from it",
        "runs.erase:HardenRun:harden",
        lambda report, o: _measured(report, Path(o.output)) or f"erasure: {o.output}",
        {**FOLDER, **NEW}, "erasure", config_file=True,
    ),
    "attack": _run_of(
        "try to bring a concept back, and measure what comes",
        "runs.attack:AttackRun:run_attacks", _table("attack_table", "attacks.md"),
        {
            **FOLDER,
            "--attack": _list("names; default all", dest="attacks", metavar="ATTACK"),
            "--scales": {
                "type": float, "nargs": "*", "default": [0.5, 0.75], "help": "strengths",
            },
            **NEW,
        },
        "erasure", "attacks", "configs", "scales", kind="attack",
    ),
    "evaluate": Command(
        "measure a folder of pictures", _evaluate,
        {
            "folder": _text("pictures, or with --rescore an evaluation"),
            "--rescore": _switch("count kept detections again"),
            "--output": _text("a new folder", default=""),
        },
        ("runs.evaluate:evaluation_config", "support.distributed:DeviceConfig"),
    ),
    "protocol": _run_of(
        "draw a protocol's prompts and measure the pictures",
        "runs.evaluate:BenchmarkProtocol:run_protocol", _figures, NEW, config_file=True,
    ),
    "classify": _run_of(
        "unlearn part of a classifier's training set and measure it",
        "runs.classify:ClassificationRun:classify", _table("gap_table", "report.md"), NEW,
        kind="method", config_file=True,
    ),
    "calibrate": _run_of(
        "find a method's main setting on data held out",
        "runs.calibrate:CalibrationRun:calibrated", _found, {}, kind="method", config_file=True,
    ),
    "forget-set": _run_of(
        "write the indices of samples that are easiest or hardest",
        "runs.forget_set:ForgetSetRun:choose_forget_set", _chosen,
        {"--output": _text("a JSON file", required=True)}, "forget",
        kind="method", config_file=True,
    ),
    "app": _run_of(
        "open the app in a browser: compare, erase, attack", "app:AppConfig:main",
        lambda _, __: "", {},
    ),
    "inspect": Command(
        "tell what erasures hold", _artefacts("inspect"),
        {"folders": _text("erasure folders", nargs="+")},
    ),
    "compose": Command(
        "join erasures into one, in order", _artefacts("compose_folders"),
        {
            "folders": _text("erasure folders, the first first", nargs="+"),
            "--sum": _switch("add them up, as stacked LoRAs do"),
            "--merge": _text("ties or dare: one that keeps a share of each", default=""),
            "--density": {"type": float, "default": 0.2, "help": "that share"},
            **NEW,
        },
    ),
    "export": Command(
        "write a stock pipeline or LoRA, which other programs open", _artefacts("export"),
        {
            "folder": _text("an erasure folder"),
            "--format": _text("pipeline, lora, or comfy: a LoRA --for one", default="pipeline"),
            "--for": _text(
                "comfyui, a1111 or sd-scripts: a LoRA that it reads", default="", dest="program"
            ),
            "--lora_rank": {"type": int, "default": 0, "help": "cut to this rank; 0: as it is"},
            "--model": _text("the base, if it has moved", default=""),
            **NEW,
        },
        ("models.opening:OpeningConfig",), ("offload",),
    ),
    "methods": Command("list the methods, and what they serve", _artefacts("list_methods")),
    "attacks": Command("list the attacks, and what they serve", _artefacts("list_attacks")),
    "families": Command(
        "list the pipelines that can forget", _artefacts("list_families"),
        {"--model": _text("tell of this one alone, and what its own calls tell", default="")},
    ),
}  # fmt: skip
