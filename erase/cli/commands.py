"""The subcommands: what each is called, what it asks, and what it does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Work = Callable[["Namespace"], str]
Options = Callable[["ArgumentParser"], None]
Says = Callable[[Any, "Namespace"], str]  # of what a run returned

NEW: dict[str, Any] = {"type": str, "required": True, "help": "a new folder"}
FOLDER: dict[str, Any] = {"type": str, "help": "an erasure folder"}
LISTS = {
    "concept": "what to forget, one or more: ghost 'ink style'",
    "anchor": "what to draw instead, one a concept",
    "retain": "what must stay; needed for models without concepts.json",
    "template": "prompts with {concept}, for models without concepts.json",
}


def _run_of(
    place: str, says: Says, *skip: str, output: str = "a new folder", folder: str = ""
) -> tuple[Work, Options]:
    """The work and the options of a run, `module:config:function`.

    Options are the config's fields and --output, if there is any, which the function is given too.
    folder: the field that an erasure folder goes into.
    """
    module, config, function = place.split(":")

    def work(options: "Namespace") -> str:
        home, chosen = import_module(f"erase.{module}"), {folder: options.folder} if folder else {}
        run = _made(getattr(home, config), options, **chosen)
        return says(getattr(home, function)(run, *([options.output] if output else [])), options)

    def add(parser: "ArgumentParser") -> None:
        if folder:
            parser.add_argument("folder", **FOLDER)
        kind = getattr(import_module(f"erase.{module}"), config)
        parser.add_class_arguments(kind, skip={"method_config", folder, *skip})
        if output:
            parser.add_argument("--output", **NEW | {"help": output})

    return work, add


def _made(config: type, options: "Namespace", **chosen: Any) -> Any:
    """The config of the options, those of its method among them."""
    from erase.methods import get_method
    from erase.support.options import made

    if "method" in options:
        chosen["method_config"] = options[get_method(options.method).name]
    return made(config, options, **chosen)


def _table(name: str, file: str) -> Says:
    """Says the table that evaluate/tables.py makes of a report, and where the report is."""

    def says(report: Any, options: "Namespace") -> str:
        from erase.evaluate import tables

        return said_of(report, getattr(tables, name), Path(options.output) / file)

    return says


def said_of(report: Any, table: Callable[[Any], str], file: Path) -> str:
    """What a run says of its report; the process that has none says nothing."""
    return f"{table(report)}\nreport: {file}" if report else ""


def _run_options(parser: "ArgumentParser") -> None:
    from erase.prompts.request import EraseRequest
    from erase.runs.erase import RunConfig

    for name, text in LISTS.items():
        parser.add_argument(f"--{name}", type=str, nargs="+", default=[], help=text)
    parser.add_class_arguments(EraseRequest, skip={"concepts", "anchors", "retain", "templates"})
    parser.add_class_arguments(RunConfig, skip={"request", "method_config", "evaluate"})
    parser.add_argument(
        "--no_evaluation", action="store_true", help="draw and judge nothing; see erase measure"
    )
    parser.add_argument("--output", type=str, default="", help="by default out/CONCEPTS-METHOD")
    parser.add_argument("--dry_run", action="store_true", help="tell the plan and do nothing")


def _run(options: "Namespace") -> str:
    from erase.prompts.request import PLAIN_TEMPLATES, EraseRequest
    from erase.runs.erase import RunConfig, open_run, run
    from erase.runs.plan import plan
    from erase.support.options import made

    request = made(
        EraseRequest, options, concepts=tuple(options.concept), anchors=tuple(options.anchor),
        retain=tuple(options.retain), templates=tuple(options.template) or PLAIN_TEMPLATES,
    )  # fmt: skip
    config = _made(RunConfig, options, request=request, evaluate=not options.no_evaluation)
    if options.dry_run:
        opened = open_run(config)
        return plan(config, opened.model, opened.prompts, opened.task)
    output = Path(options.output or _default_output(request.concepts, config.method))
    report = run(config, output)
    return _measured(report, output) if config.evaluate else f"erasure: {output}"


def _default_output(concepts: Sequence[str], method: str) -> str:
    names = "+".join(name.strip().lower().replace(" ", "-") for name in concepts)
    return f"out/{names}-{method}".replace("..", "")


def _measured(report: Any, folder: Path) -> str:
    from erase.evaluate.tables import summary_table

    paths = f"report:  {folder / 'report.md'}\npicture: {folder / 'grid.png'}"
    return f"{summary_table(report)}\n{paths}" if report else ""


def _attack_options(parser: "ArgumentParser") -> None:
    from erase.runs.attack import AttackRun

    parser.add_argument("folder", **FOLDER)
    parser.add_argument("--attack", type=str, nargs="+", default=[], help="names; default all")
    parser.add_argument("--scales", type=float, nargs="*", default=[0.5, 0.75], help="strengths")
    parser.add_class_arguments(AttackRun, skip={"erasure", "attacks", "configs", "scales"})
    parser.add_argument("--output", **NEW)


def _attack(options: "Namespace") -> str:
    from erase.attacks import attacks
    from erase.runs.attack import AttackRun, run_attacks

    configs = {name: options[name] for name in attacks()}
    run = _made(AttackRun, options, erasure=options.folder, attacks=options.attack, configs=configs)
    report = run_attacks(run, options.output)
    return _table("attack_table", "attacks.md")(report, options)


def _evaluate_options(parser: "ArgumentParser") -> None:
    from erase.runs.measure import evaluation_config
    from erase.support.distributed import DeviceConfig

    parser.add_argument("folder", type=str, help="pictures, or with --rescore an evaluation")
    parser.add_argument("--rescore", action="store_true", help="count kept detections again")
    parser.add_argument("--output", type=str, default="", help="a new folder")
    parser.add_class_arguments(evaluation_config())
    parser.add_class_arguments(DeviceConfig)


def _evaluate(options: "Namespace") -> str:
    from erase.runs.measure import evaluate, evaluation_config, rescore

    if options.rescore:
        return json.dumps(rescore(options.folder, options.threshold, options.classes), indent=2)
    if not options.output:
        raise ValueError("There is no --output; name a new folder.")
    asked = _made(evaluation_config(), options)
    report = evaluate(options.folder, asked, options.output, options.device)
    return _figures(report, options)


_figures = _table("figure_lines", "evaluation.json")


def _found(found: Any, _: "Namespace") -> str:
    return f"{found}\nuse --{found.method}.{found.setting} {found.value:g}" if found else ""


def _chosen(indices: Sequence[int], options: "Namespace") -> str:
    return f"{len(indices)} indices: {options.output}" if indices else ""


def _inspect_options(parser: "ArgumentParser") -> None:
    parser.add_argument("folders", type=str, nargs="+", help="erasure folders")


def _compose_options(parser: "ArgumentParser") -> None:
    parser.add_argument("folders", type=str, nargs="+", help="erasure folders, the first first")
    parser.add_argument("--sum", action="store_true", help="add them up, as stacked LoRAs do")
    parser.add_argument("--output", **NEW)


def _export_options(parser: "ArgumentParser") -> None:
    from erase.models.opening import OpeningConfig
    from erase.runs.artefacts import Format

    parser.add_argument("folder", **FOLDER)
    parser.add_argument("--format", type=Format, default="pipeline", help="comfy: a LoRA --for one")
    parser.add_argument(
        "--for", dest="program", type=str, default="",
        help="comfyui, a1111 or sd-scripts: a LoRA that it reads",
    )  # fmt: skip
    parser.add_argument("--lora_rank", type=int, default=0, help="cut to this rank; 0: as it is")
    parser.add_argument("--model", type=str, default="", help="the base, if it has moved")
    parser.add_class_arguments(OpeningConfig, skip={"offload"})
    parser.add_argument("--output", **NEW)


def _artefacts(name: str) -> Work:
    """The function of that name in runs/artefacts.py, given the options as they are called."""

    def work(options: "Namespace") -> str:
        return getattr(import_module("erase.runs.artefacts"), name)(**options.as_dict())

    return work


@dataclass(frozen=True)
class Command:
    """A subcommand: its line in the help, its options, and what it does, which is what it says.

    kind: what it takes that has options of its own, a method or attacks. config_file: whether
    options may come from a YAML file.
    """

    text: str
    work: Work
    options: Options = lambda parser: None
    kind: str = ""
    config_file: bool = False


COMMANDS = {
    "run": Command(
        "erase concepts, measure the result, write a report", _run, _run_options, "method", True
    ),
    "measure": Command(
        "draw and judge what an erasure does, where its run did not",
        *_run_of(
            "runs.measuring:MeasureRun:measure", lambda done, o: _measured(done, Path(o.folder)),
            output="", folder="erasure",
        ),
    ),
    "attack": Command(
        "try to bring a concept back, and measure what comes", _attack, _attack_options, "attack"
    ),
    "evaluate": Command("measure a folder of pictures", _evaluate, _evaluate_options),
    "protocol": Command(
        "draw a protocol's prompts and measure the pictures",
        *_run_of("runs.measure:BenchmarkProtocol:run_protocol", _figures),
        config_file=True,
    ),
    "classify": Command(
        "unlearn part of a classifier's training set and measure it",
        *_run_of("runs.classify:ClassificationRun:classify", _table("gap_table", "report.md")),
        "method", True,
    ),
    "calibrate": Command(
        "find a method's main setting on data held out",
        *_run_of("runs.calibrate:CalibrationRun:calibrated", _found, output=""), "method", True,
    ),
    "forget-set": Command(
        "write the indices of samples that are easiest or hardest",
        *_run_of(
            "runs.forget_set:ForgetSetRun:choose_forget_set", _chosen, "forget",
            output="a JSON file",
        ), "method", True,
    ),
    "app": Command(
        "open the app in a browser: compare, erase, attack",
        *_run_of("app:AppConfig:main", lambda _, __: "", output=""),
    ),
    "inspect": Command("tell what erasures hold", _artefacts("inspect"), _inspect_options),
    "compose": Command(
        "join erasures into one, in order", _artefacts("compose_folders"), _compose_options
    ),
    "export": Command(
        "write a stock pipeline or LoRA, which other programs open", _artefacts("export"),
        _export_options,
    ),
    "methods": Command("list the methods, and what they serve", _artefacts("list_methods")),
    "attacks": Command("list the attacks, and what they serve", _artefacts("list_attacks")),
    "families": Command("list the pipelines that can forget", _artefacts("list_families")),
}  # fmt: skip
