"""The parsers of the command line, from the typed configs."""

from jsonargparse import ActionConfigFile, ArgumentParser

from erase.app.settings import AppConfig
from erase.attacks import attacks
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.methods import methods
from erase.prompts.request import Redirect
from erase.runs.artefacts import Format
from erase.runs.classify import ClassifierConfig
from erase.runs.evaluate import PictureEvaluation
from erase.runs.measure import BenchmarkProtocol
from erase.tasks.classification.forget_sets import Tail, Unit
from erase.tasks.classification.task import ClassificationTaskConfig
from erase.tasks.diffusion.task import DiffusionTaskConfig


def build_parser() -> ArgumentParser:
    """The parser of `erase`; a method's own options carry its name, as in --salun.density."""
    parser = ArgumentParser(prog="erase", description="Make a text-to-image model forget.")
    subcommands = parser.add_subcommands(required=True, dest="command")
    subcommands.add_subcommand("run", _run_parser(), help="erase concepts and measure the result")
    subcommands.add_subcommand("attack", _attack_parser(), help="try to bring a concept back")
    subcommands.add_subcommand("evaluate", _evaluate_parser(), help="measure a folder of pictures")
    subcommands.add_subcommand("protocol", _protocol_parser(), help="draw and measure as published")
    subcommands.add_subcommand("classify", _classify_parser(), help="make a classifier forget")
    subcommands.add_subcommand("calibrate", _calibrate_parser(), help="find a method's setting")
    subcommands.add_subcommand("app", _app_parser(), help="open the app in a browser")
    subcommands.add_subcommand("forget-set", _forget_set_parser(), help="choose what to forget")
    subcommands.add_subcommand(
        "inspect", _inspect_parser(), help="what erasures hold, how they meet"
    )
    subcommands.add_subcommand("compose", _compose_parser(), help="join erasures, in order")
    subcommands.add_subcommand(
        "families", ArgumentParser(description="The pipelines that can forget."),
        help="which pipelines, which methods",
    )  # fmt: skip
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
    parser.add_argument(
        "--format", type=Format, default="pipeline", help="comfy: a LoRA in kohya's names"
    )
    parser.add_argument(
        "--lora_rank", type=int, default=0, help="cut to a LoRA of this rank; 0: as it is"
    )
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
        ("--template", "prompts with {concept}, for models without concepts.json"),
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
    parser.add_argument("--dry_run", action="store_true", help="tell the plan and do nothing")
    parser.add_class_arguments(DiffusionTaskConfig, "task")
    parser.add_class_arguments(EvaluationConfig, "evaluation")
    for method in methods().values():
        parser.add_class_arguments(method.config, method.name)
    return parser


def _app_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Serve the app: compare, erase, attack, in a browser.")
    parser.add_class_arguments(AppConfig)
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
    parser.add_class_arguments(BenchmarkProtocol)
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


def _forgetting_parser(description: str) -> ArgumentParser:
    parser = _classifier_parser(description)
    parser.add_argument(
        "--forget", type=str, required=True, help="class:3, random:0.1 or a JSON file of indices"
    )
    return parser


def _calibrate_parser() -> ArgumentParser:
    parser = _forgetting_parser("Find a method's learning rate, or its own setting, on data held "
                                "out of the training set.")  # fmt: skip
    parser.add_argument("--share", type=float, default=0.1, help="of the retain set, held out")
    return parser


def _classify_parser() -> ArgumentParser:
    parser = _forgetting_parser("Unlearn part of a classifier's training set and measure it.")
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
