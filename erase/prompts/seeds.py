"""The first seed of every range of draws, in one place, so that no two ranges meet.

A run's own seed picks the ranges that it learns from: pictures `of_stream`, steps of training from
`10_000_000 * (seed + 1)` on. Seeds below a million are the callers' own, as those of `erase
protocol` are. benchmarks/ has 5_000_000 and 9_500_000.
"""

# What a run draws, as its bars name it: where that begins in the ten million of the run's seed.
STREAMS = {
    "forget set": 1_000_000, "retain set": 2_000_000, "anchor pictures": 3_000_000,
    "listening": 4_000_000, "looking at the model": 5_000_000, "teacher's pictures": 5_500_000,
}  # fmt: skip

TARGET_SEED = 6_000_000  # pictures that attacks learn from, 10,000 for each seed of an attack
EVALUATION_SEED = 7_000_000  # pictures that are judged, one a prompt
ATTACK_SEED = 8_000_000  # pictures under attack, 10,000 for each seed of an attack
MATRIX_SEED = 9_000_000  # every object in every style, one a cell

# Of classifiers, added to a run's own seed.
RETRAIN_SEED = 1_000  # the model trained without the forget set
HELD_OUT_SEED = 7_919  # the model that methods ask how a stranger to the forget set answers
SHADOW_SEED = 100_000  # one for each shadow model


def of_stream(stream: str, seed: int) -> int:
    """The first seed of one of STREAMS, for a run's own seed."""
    return 10_000_000 * seed + STREAMS[stream]


def of_attack(first: int, seed: int) -> int:
    """Where an attack's seed begins in the range of TARGET_SEED or ATTACK_SEED.

    Seeds 0 to 99 lie in that million, each further hundred in the same million of another ten, from
    which no run draws.
    """
    return first + 10_000_000 * (seed // 100) + 10_000 * (seed % 100)
