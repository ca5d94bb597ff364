"""The runs that the yardstick compares, with every number said."""

Step = tuple[str, ...]

PICTURES = ("concept_ablation", "esd", "rece", "uce")
SAMPLES = (
    "bad_teacher", "bias_suppression", "boundary_expand", "boundary_shrink", "cf_k", "delete",
    "eu_k", "influence", "lfssd", "retrain", "ssd",
)  # fmt: skip
BOTH = (
    "finetune", "gradient_ascent", "l1_sparse", "neggrad_plus", "projection", "random_label",
    "salun", "salun_lora", "salun_soft", "scrub", "selective_amnesia",
)  # fmt: skip
UNTRAINED = (
    "bias_suppression", "influence", "lfssd", "projection", "rece", "retrain", "ssd", "uce",
)  # fmt: skip
SAID = {
    "influence": ["--influence.curvature_batches=4"], "retrain": ["--retrain.epochs=1"],
    "ssd": ["--ssd.selection=10"],
}  # fmt: skip
RELABELLING = ("random_label", "salun", "salun_lora", "salun_soft")
SUGGESTED = ("retain_weight=5", "training.learning_rate=0.001")  # to these, by each model its own
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "pixart")

WHOLE = "weights, mask, recipe, report, card, pictures"
RUN = (
    "--task.forget_pictures=4", "--task.retain_pictures=4", "--task.generation_steps=2",
    "--task.batch_size=2", "--evaluation.steps=2", "--seed=3",
)  # fmt: skip
CLASSIFY = (
    "--classifier.model=shufflenet_v2_x0_5", "--classifier.fit.epochs=1", "--task.batch_size=32",
    "--classifier.weights=inputs/digits.safetensors", "--seed=3",
)  # fmt: skip
JUDGE = "local-dir:inputs/judge"
SALUN = {
    "bottom": "--salun.mask=bottom", "random": "--salun.mask=random",
    "per_layer": "--salun.mask=random_per_layer", "scope": "--salun.scope=layer",
    **{name: f"--salun.estimator={name}" for name in ("abs_sum", "fisher", "fisher_ratio")},
    "current": "--salun.teacher=current", "averaged": "--salun.training.use_ema=true",
    "decayed": "--salun.training.adam_weight_decay=0.1",
    "accumulated": "--salun.training.gradient_accumulation_steps=2",
    "checkpointed": "--salun.training.gradient_checkpointing=true",
    "bfloat16": "--salun.training.mixed_precision=bf16", "robust": "--task.adversary_steps=1",
    "given": "--task.forget_folder=inputs/pictures", "everything": '--task.include=["*"]',
    "redirected": "--redirect=random", "oracle": "--oracle=inputs/sd2",
}  # fmt: skip
ATTACKS = (
    "--recall.strength=0.8", "--latent_inversion.steps=2", "--relearning.steps=2",
    "--relearning.every=1", "--benign_relearning.steps=2", "--benign_relearning.every=1",
    "--concept_inversion.steps=2", "--prefix.steps=2", "--p4d.steps=2",
    "--ring_a_bell.generations=2", "--ring_a_bell.population=8",
)  # fmt: skip
PROTOCOL = (
    "--prompts.path=inputs/prompts.csv", "--prompts.label=class", "--prompts.group=group",
    "--prompts.seed=sd_seed", "--prompts.guidance_scale=sd_guidance_scale", "--clip_score=true",
    '--erased_groups=["erased"]', '--kept_groups=["others"]', "--drawing.steps=2",
    '--evaluation.labels=["ghost", "pizza"]', "--drawing.scheduler=DDIMScheduler",
)  # fmt: skip
REFUSED = (
    ("--concept=gohst",), ("--concept=ghost", "--salun.density=2"),
    ("--concept=ghost", "--method=magic"), ("--concept=ghost", "--method=ssd"),
    ("--concept=ghost", "--salun.mask=tpo"), ("--concept=ghost", "--model=nowhere"), (),
)  # fmt: skip


def run_of(method: str, output: str, *words: str, pictures: int = 3, steps: int = 2) -> Step:
    """`erase run`."""
    counts = [f"--evaluation.{kind}_pictures={pictures}" for kind in ("forget", "retain")]
    trained = [] if method in UNTRAINED else [f"--{method}.training.max_train_steps={steps}"]
    trained += suggested(method)
    return ("run", f"--method={method}", f"--output={output}", *RUN, *counts, *trained, *words)


def suggested(method: str) -> list[str]:
    """What a model would suggest to a method that relabels."""
    return [f"--{method}.{one}" for one in SUGGESTED] if method in RELABELLING else []


def tiny(method: str, output: str, *words: str, concept: str = "ghost", steps: int = 2) -> Step:
    """`erase run` on a tiny model."""
    asked = f"--concept={concept}", "--model=inputs/sd1", *words
    return run_of(method, output, *asked, steps=steps)


def classifier(command: str, method: str, *words: str) -> Step:
    """A command about a small classifier of digits."""
    trained = [] if method in UNTRAINED else [f"--{method}.training.max_train_steps=2"]
    said = [*SAID.get(method, []), *suggested(method)]
    return (command, f"--method={method}", *CLASSIFY, *trained, *said, *words)


def cases() -> dict[str, tuple[str, list[Step]]]:
    """By name: what is compared, and steps, each `erase`'s words or a step of yardstick_steps."""
    return _of_methods() | _of_options() | _of_training() | _of_commands()


def _of_methods() -> dict[str, tuple[str, list[Step]]]:
    found = {}
    for method in (*PICTURES, *BOTH):
        words = ["--concept=ghost", "--anchor=pizza", "--model=emoji"]
        words += ["--salun.mask_file=mask"] if method == "salun" else []
        found[f"emoji-{method}"] = WHOLE, [run_of(method, "out", *words, pictures=8)]
    for family in FAMILIES:
        found[f"tiny-{family}"] = "every method: weights, mask, recipe", [("#tiny", family)]
    for method in (*SAMPLES, *BOTH):
        words = ["--forget=class:3", "--output=out"]
        words += ["--salun.mask_file=mask"] if method == "salun" else []
        found[f"digits-{method}"] = WHOLE, [classifier("classify", method, *words)]
    return found


def _of_options() -> dict[str, tuple[str, list[Step]]]:
    spaces = ("oblique", "mean_difference", "contrastive", "scaled", "null_space")
    variants = ("x", "x_strict", "u", "all")
    others = [tiny("projection", space, f"--projection.space={space}") for space in spaces]
    others += [tiny("esd", f"esd_{one}", f"--esd.variant={one}") for one in variants]
    two = "--concept", "ghost", "ink style", "--model=inputs/sd1"
    others += [run_of(method, f"two_{method}", *two) for method in ("uce", "projection", "salun")]
    plain = "--concept=Van Gogh", "--retain=Monet", "--model=inputs/plain", f"--judge={JUDGE}"
    others.append(run_of("uce", "plain", *plain))
    return {
        "salun-options": (
            f"{WHOLE}; {len(SALUN)} options of mask, training and task",
            [tiny("salun", name, word) for name, word in SALUN.items()],
        ),
        "other-options": (f"{WHOLE}; spaces, variants, two concepts, no catalogue", others),
        "classifier-options": (
            f"{WHOLE}; U-LiRA, answers of a held-out model",
            [classifier("classify", "salun", "--forget=random:0.1", *words)
             for words in (("--shadows=2", "--output=shadows"),
                           ("--task.redirect=held_out", "--task.held_out_epochs=1",
                            "--output=held_out"))],
        ),
    }  # fmt: skip


def _of_training() -> dict[str, tuple[str, list[Step]]]:
    often = "--salun.training.checkpointing_steps=1"
    stopped, whole = (tiny("salun", name, often, steps=30) for name in ("resumed", "undisturbed"))
    same = ("#same", "resumed/deltas.safetensors", "undisturbed/deltas.safetensors")
    run = tiny("salun", "out", often)
    shards = "--config_file", "inputs/configs/accelerate/fsdp.yaml"
    return {
        "resumed": (
            f"{WHOLE}; stopped by SIGTERM and gone on, same weights as undisturbed",
            [("#stopped", *stopped), stopped, whole, same],
        ),
        "two-processes": (WHOLE, [("#launched", "--multi_gpu", "--num_processes=2", *run)]),
        "shards": (WHOLE, [("#launched", *shards, *run)]),
    }


def _of_commands() -> dict[str, tuple[str, list[Step]]]:
    erased = run_of("uce", "uce", "--concept=ghost", "--model=inputs/emoji")
    attack = "attack", "uce", "--prompts=2", "--scales", "0.5", "--seed=3", *ATTACKS
    evaluate = (
        "evaluate", "inputs/pictures", "--output=out", f"--judge={JUDGE}", "--nudity=true",
        '--labels=["cat face", "pizza"]', "--captions=inputs/captions.txt",
        "--reference=inputs/references", '--classes=["FACE_FEMALE"]',
    )  # fmt: skip
    protocol = "protocol", *PROTOCOL, f"--evaluation.judge={JUDGE}", "--erasure=uce"
    chosen = "forget-set", "finetune", "--count=5"
    return {
        "attack": (
            "attacks.json, attacks.md, galleries of all eight",
            [erased, (*attack, "--output=out", "--oracle=inputs/emoji")],
        ),
        "evaluate": (
            "evaluation.json; counted again",
            [evaluate, ("evaluate", "out", "--rescore", "--threshold=0.3")],
        ),
        "protocol": (
            "pictures, prompts.json, evaluation.json",
            [erased, (*protocol, "--model=inputs/emoji", "--output=out")],
        ),
        "calibrate": (
            "what is printed",
            [classifier("calibrate", name, "--forget=class:3") for name in ("ssd", "finetune")],
        ),
        "forget-set": (
            "the indices",
            [classifier(*chosen, "--output=low.json", "--rounds=1"),
             classifier(*chosen, "--output=high.json", "--tail=highest", "--unit=balanced")],
        ),
        "artefacts": (
            "inspect, compose, export, families, the public functions",
            [tiny("uce", "a"), tiny("salun", "b", concept="pizza"), ("inspect", "a", "b"),
             ("compose", "a", "b", "--output=joint"), ("compose", "a", "b", "--sum", "--output=s"),
             ("export", "joint", "--output=pipeline"), ("families",), ("#public", "a", "b"),
             ("export", "a", "--format=comfy", "--output=comfy"),
             ("export", "b", "--format=lora", "--lora_rank=2", "--output=lora")],
        ),
        "refusals": (
            "the sentence, and that nothing is left",
            [run_of("salun", "out", "--model=inputs/sd1", *words) for words in REFUSED],
        ),
        "flags": ("which flags are accepted", [("#flags",)]),
        "configs": ("every YAML of configs/, parsed", [("#configs",)]),
    }  # fmt: skip
