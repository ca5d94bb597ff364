"""The command line; every flag and YAML key of `erase run` comes from the typed configs."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from erase import commands
from erase.attack_runner import AttackRun, attack_table, run_attacks
from erase.attacks import attacks
from erase.classification_runner import (
    ClassificationRun,
    ClassifierConfig,
    choose_forget_set,
    classify,
)
from erase.evaluate.classification_report import gap_table
from erase.evaluate.generation import EvaluationConfig
from erase.evaluate.report import summary_table
from erase.evaluation_runner import PictureEvaluation, evaluate, figure_lines, rescore
from erase.forget_sets import Tail, Unit, write_indices
from erase.methods import get_method, methods
from erase.protocols import Protocol, run_protocol
from erase.request import EraseRequest, Redirect
from erase.runner import RunConfig, run
from erase.tasks.classification import ClassificationTaskConfig
from erase.tasks.diffusion import DiffusionTaskConfig
from erase.training import TrainingStopped


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand: 0 on success, 2 after one sentence on bad input, 130 when stopped."""
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    try:
        command = parser.instantiate(parsed)
        said = COMMANDS[command.command](command[command.command])
        print(said, end="\n" if said else "")
    except ValueError as error:
        print(f"erase: {error}", file=sys.stderr)
        return 2
    except (TrainingStopped, KeyboardInterrupt) as stop:
        message = str(stop) or "Stopped; run the same command again to go on."
        print(f"erase: {message}", file=sys.stderr)
        return 130
    return 0


def build_parser() -> ArgumentParser:
    """The parser of `erase`; a method's own options carry its name, as in --salun.density."""
    parser = ArgumentParser(prog="erase", description="Make a text-to-image model forget.")
    subcommands = parser.add_subcommands(required=True, dest="command")
    subcommands.add_subcommand("run", _run_parser(), help="erase concepts and measure the result")
    subcommands.add_subcommand("attack", _attack_parser(), help="try to bring a concept back")
    subcommands.add_subcommand("evaluate", _evaluate_parser(), help="measure a folder of pictures")
    subcommands.add_subcommand("protocol", _protocol_parser(), help="draw and measure as published")
    subcommands.add_subcommand("classify", _classify_parser(), help="make a classifier forget")
    subcommands.add_subcommand("forget-set", _forget_set_parser(), help="choose what to forget")
    subcommands.add_subcommand(
        "inspect", _inspect_parser(), help="what erasures hold, how they meet"
    )
    subcommands.add_subcommand("compose", _compose_parser(), help="join erasures, in order")
    subcommands.add_subcommand("export", _export_parser(), help="a stock pipeline or LoRA")
    return parser


def _inspect_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Tell what erasures hold and how they interfere.")
    parser.add_argument("folders", type=str, nargs="+", help="erasure folders")
    return parser


def _compose_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Apply erasures one after the other, as one erasure.")
    parser.add_argument("folders", type=str, nargs="+", help="erasure folders, the first first")
    parser.add_argument("--sum", action="store_true", help="add them up, as stacked LoRAs do")
    parser.add_argument("--output", type=str, required=True, help="a new erasure folder")
    return parser


def _export_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Write what plain diffusers opens.")
    parser.add_argument("folder", type=str, help="an erasure folder")
    parser.add_argument("--lora_rank", type=int, default=0, help="a LoRA of this rank at most")
    parser.add_argument("--model", type=str, default="", help="the base, if it has moved")
    parser.add_argument("--output", type=str, required=True, help="a new folder")
    return parser


def _run_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Erase concepts, measure the result, write a report.")
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file of these options")
    for flag, text in (
        ("--concept", "what to forget, one or more: ghost 'ink style'"),
        ("--anchor", "what to draw instead, one per concept"),
        ("--retain", "what must stay; needed for models without concepts.json"),
    ):
        parser.add_argument(flag, type=str, nargs="+", default=[], help=text)
    parser.add_argument(
        "--redirect", type=Redirect, default="anchor", help="random: another concept each prompt"
    )
    parser.add_argument("--model", type=str, default="emoji", help="emoji, a folder or a hub id")
    parser.add_argument("--method", type=str, default="salun", help=", ".join(methods()))
    parser.add_argument("--judge", type=str, default="", help="e.g. ViT-B-32/openai")
    parser.add_argument(
        "--oracle", type=str, default="", help="a pipeline trained without it, to compare with"
    )
    parser.add_argument("--device", type=str, default="cpu", help="cpu, cuda, mps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=str, default="", help="default: out/CONCEPTS-METHOD")
    parser.add_class_arguments(DiffusionTaskConfig, "task")
    parser.add_class_arguments(EvaluationConfig, "evaluation")
    for method in methods().values():
        parser.add_class_arguments(method.config, method.name)
    return parser


def _attack_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Attack an erasure and measure what comes back.")
    parser.add_argument("folder", type=str, help="an erasure folder")
    parser.add_argument(
        "--attack", type=str, nargs="+", default=[], help=f"of {', '.join(attacks())}"
    )
    parser.add_argument("--prompts", type=int, default=32, help="prompts that name the concept")
    parser.add_argument("--scales", type=float, nargs="*", default=[0.5, 0.75], help="strengths")
    parser.add_argument("--seed", type=int, default=0)
    for flag, text in (
        ("--model", "the base, if it has moved"),
        ("--judge", "e.g. ViT-B-32/openai"),
        ("--oracle", "a pipeline trained without it, to attack beside"),
    ):
        parser.add_argument(flag, type=str, default="", help=text)
    parser.add_argument("--output", type=str, required=True, help="a new folder")
    for attack in attacks().values():
        parser.add_class_arguments(attack.config, attack.name)
    return parser


def _evaluate_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Measure a folder of pictures, whoever drew them.")
    parser.add_argument("folder", type=str, help="pictures, or with --rescore an evaluation")
    parser.add_argument("--rescore", action="store_true", help="count kept detections again")
    parser.add_argument("--output", type=str, default="", help="a new folder")
    parser.add_class_arguments(PictureEvaluation)
    return parser


def _protocol_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Draw a protocol's prompts and measure the pictures.")
    parser.add_argument("--config", action=ActionConfigFile, help="of configs/protocols, e.g.")
    parser.add_class_arguments(Protocol)
    parser.add_argument("--output", type=str, required=True, help="a new folder")
    return parser


def _classifier_parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file of these options")
    parser.add_argument("--method", type=str, default="salun", help=", ".join(methods()))
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="of trained methods")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_class_arguments(ClassifierConfig, "classifier")
    parser.add_class_arguments(ClassificationTaskConfig, "task")
    for method in methods().values():
        parser.add_class_arguments(method.config, method.name)
    return parser


def _classify_parser() -> ArgumentParser:
    parser = _classifier_parser("Unlearn part of a classifier's training set and measure it.")
    parser.add_argument(
        "--forget", type=str, required=True, help="class:3, random:0.1 or a JSON file of indices"
    )
    parser.add_argument("--shadows", type=int, default=0, help="models a side for U-LiRA")
    parser.add_argument("--output", type=str, required=True, help="a new folder")
    return parser


def _forget_set_parser() -> ArgumentParser:
    parser = _classifier_parser("Write the indices of the samples that are easiest or hardest.")
    parser.add_argument("--count", type=int, required=True, help="how many of the unit")
    parser.add_argument(
        "--unit", type=Unit, default="samples", help="balanced: of all classes; classes: whole ones"
    )
    parser.add_argument("--tail", type=Tail, default="lowest", help="of the original's loss")
    parser.add_argument(
        "--rounds", type=int, default=0, help="search the method's worst case, that many rounds"
    )
    parser.add_argument("--output", type=str, required=True, help="a JSON file")
    return parser


def _run(options: Namespace) -> str:
    request = EraseRequest(
        concepts=tuple(options.concept),
        anchors=tuple(options.anchor),
        redirect=options.redirect,
        retain=tuple(options.retain),
        seed=options.seed,
    )
    get_method(options.method)
    config = RunConfig(
        request=request,
        model=options.model,
        method=options.method,
        method_config=options[options.method],
        task=options.task,
        evaluation=options.evaluation,
        judge=options.judge,
        oracle=options.oracle,
        device=options.device,
    )
    output = Path(options.output or _default_output(request, options.method))
    report = run(config, output)
    if not report:
        return ""
    paths = f"report:  {output / 'report.md'}\npicture: {output / 'grid.png'}"
    return f"{summary_table(report)}\n{paths}"


def _attack(options: Namespace) -> str:
    run_ = AttackRun(
        erasure=options.folder,
        attacks=options.attack,
        configs={name: options[name] for name in attacks()},
        prompts=options.prompts,
        scales=options.scales,
        seed=options.seed,
        model=options.model,
        judge=options.judge,
        oracle=options.oracle,
    )
    report = run_attacks(run_, options.output)
    return f"{attack_table(report)}\nreport: {Path(options.output) / 'attacks.md'}"


def _evaluate(options: Namespace) -> str:
    if options.rescore:
        return json.dumps(rescore(options.folder, options.threshold, options.classes), indent=2)
    if not options.output:
        raise ValueError("There is no --output; name a new folder.")
    names = [field.name for field in dataclasses.fields(PictureEvaluation)]
    config = PictureEvaluation(**{name: options[name] for name in names})
    report = evaluate(options.folder, config, options.output)
    return f"{figure_lines(report)}\nreport: {Path(options.output) / 'evaluation.json'}"


def _protocol(options: Namespace) -> str:
    names = [field.name for field in dataclasses.fields(Protocol)]
    report = run_protocol(Protocol(**{name: options[name] for name in names}), options.output)
    return f"{figure_lines(report)}\nreport: {Path(options.output) / 'evaluation.json'}"


def _classification(options: Namespace, forget: str) -> ClassificationRun:
    get_method(options.method)
    return ClassificationRun(
        classifier=options.classifier,
        forget=forget,
        method=options.method,
        method_config=options[options.method],
        task=options.task,
        learning_rate=options.learning_rate,
        seed=options.seed,
        shadows=options.get("shadows", 0),
    )


def _classify(options: Namespace) -> str:
    report = classify(_classification(options, options.forget), options.output)
    if not report:
        return ""
    return f"{gap_table(report)}\nreport: {Path(options.output) / 'report.md'}"


def _forget_set(options: Namespace) -> str:
    run_ = _classification(options, "")
    chosen = choose_forget_set(run_, options.count, options.tail, options.rounds, options.unit)
    write_indices(chosen, Path(options.output))
    return f"{len(chosen)} indices: {options.output}"


def _default_output(request: EraseRequest, method: str) -> str:
    names = "+".join(name.strip().lower().replace(" ", "-") for name in request.concepts)
    return f"out/{names}-{method}".replace("..", "")


COMMANDS: dict[str, Callable[[Namespace], str]] = {
    "run": _run,
    "attack": _attack,
    "evaluate": _evaluate,
    "protocol": _protocol,
    "classify": _classify,
    "forget-set": _forget_set,
    "inspect": lambda options: commands.inspect(options.folders),
    "compose": lambda options: commands.join(options.folders, options.output, options.sum),
    "export": lambda options: commands.export(
        options.folder, options.output, options.model, options.lora_rank
    ),
}
