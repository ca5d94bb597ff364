"""The command line; every flag and YAML key of `erase run` comes from the typed configs."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from erase.app import main as serve_app
from erase.app.settings import AppConfig
from erase.attacks import attacks
from erase.cli_parsers import build_parser
from erase.evaluate.classifiers.report import gap_table
from erase.evaluate.pictures.report import summary_table
from erase.methods import get_method
from erase.prompts.request import PLAIN_TEMPLATES, EraseRequest
from erase.runs import artefacts
from erase.runs.attack import AttackRun, attack_table, run_attacks
from erase.runs.calibrate import CalibrationRun, calibrated
from erase.runs.classify import ClassificationRun, classify
from erase.runs.erase import RunConfig, open_run, run
from erase.runs.evaluate import PictureEvaluation, evaluate, figure_lines, rescore
from erase.runs.forget_set import ForgetSetRun, choose_forget_set
from erase.runs.measure import BenchmarkProtocol, run_protocol
from erase.runs.plan import plan
from erase.training.loop import TrainingStopped


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


def _run(options: Namespace) -> str:
    request = EraseRequest(
        concepts=tuple(options.concept),
        anchors=tuple(options.anchor),
        redirect=options.redirect,
        retain=tuple(options.retain),
        templates=tuple(options.template) or PLAIN_TEMPLATES,
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
    if options.dry_run:
        opened = open_run(config)
        return plan(config, opened.model, opened.prompts, opened.task)
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
    names = [field.name for field in dataclasses.fields(BenchmarkProtocol)]
    report = run_protocol(
        BenchmarkProtocol(**{name: options[name] for name in names}), options.output
    )
    return f"{figure_lines(report)}\nreport: {Path(options.output) / 'evaluation.json'}"


def _of_classifier(options: Namespace, *names: str) -> dict[str, Any]:
    """The fields that the runs of classifiers share, and these of their own."""
    get_method(options.method)
    shared = ("classifier", "method", "task", "learning_rate", "seed")
    fields = {name: options[name] for name in (*shared, *names)}
    return fields | {"method_config": options[options.method]}


def _classify(options: Namespace) -> str:
    run_ = ClassificationRun(**_of_classifier(options, "forget", "shadows"))
    report = classify(run_, options.output)
    if not report:
        return ""
    return f"{gap_table(report)}\nreport: {Path(options.output) / 'report.md'}"


def _calibrate(options: Namespace) -> str:
    found = calibrated(CalibrationRun(**_of_classifier(options, "forget", "share")))
    return f"{found}\nuse --{found.method}.{found.setting} {found.value:g}" if found else ""


def _forget_set(options: Namespace) -> str:
    run_ = ForgetSetRun(**_of_classifier(options, "count", "unit", "tail", "rounds"))
    chosen = choose_forget_set(run_, options.output)
    return f"{len(chosen)} indices: {options.output}" if chosen else ""


def _app(options: Namespace) -> str:
    names = [field.name for field in dataclasses.fields(AppConfig)]
    serve_app(AppConfig(**{name: options[name] for name in names}))
    return ""


def _default_output(request: EraseRequest, method: str) -> str:
    names = "+".compose(name.strip().lower().replace(" ", "-") for name in request.concepts)
    return f"out/{names}-{method}".replace("..", "")


COMMANDS: dict[str, Callable[[Namespace], str]] = {
    "run": _run,
    "app": _app,
    "attack": _attack,
    "evaluate": _evaluate,
    "protocol": _protocol,
    "classify": _classify,
    "forget-set": _forget_set,
    "calibrate": _calibrate,
    "inspect": lambda options: artefacts.inspect(options.folders),
    "compose": lambda options: artefacts.compose(options.folders, options.output, options.sum),
    "export": lambda options: artefacts.export(
        options.folder, options.output, options.model, options.lora_rank, options.format
    ),
    "families": lambda options: artefacts.families(),
}
