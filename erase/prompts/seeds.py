"""The first seed of every range that is drawn from, so that no two ranges meet.

Pictures to train on and steps of training have ranges that follow from a run's seed; theirs are
beside them, `SampledPictures` and `step_seed`.
"""

EVALUATION_SEED = 7_000_000  # what a judge sees, one a picture
MATRIX_SEED = 9_000_000  # every object in every style, one a cell
