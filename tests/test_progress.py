import contextlib
import itertools

import pytest
from hosts import build_tiny_pipeline
from tiny_families import build_family

from erase.prompts.catalogue import Sampling
from erase.support.progress import Bar, WholeRun, on_progress
from erase.tasks.diffusion.sampling import draw


def told_by(work) -> list[tuple[str, int, int]]:
    told = []
    with on_progress(lambda *of: told.append(of)):
        work()
    return told


@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_drawing_counts_sampling_steps_over_all_pictures(family):
    pipeline = build_tiny_pipeline() if family == "sd1" else build_family(family)
    told = told_by(lambda: draw(pipeline, ["a ghost"] * 3, [0, 1, 2], Sampling(2, 2.0, 16)))
    assert told[0] == ("drawing", 3, 6)
    assert told[-1] == ("drawing", 6, 6)
    done = [of[1] for of in told]
    assert done == sorted(done)


def test_one_bar_at_a_time_is_shown_and_all_are_told(capsys):
    def work() -> None:
        with Bar(total=1, desc="outer") as outer:
            with Bar(total=2, desc="inner") as inner:
                inner.update(2)
            outer.update()

    assert told_by(work) == [("inner", 2, 2), ("outer", 1, 1)]
    shown = capsys.readouterr().err
    assert "outer" in shown
    assert "inner" not in shown


@pytest.mark.parametrize("beside", [0, 1])
def test_a_bar_that_is_walked_along_tells_every_step_shown_or_not(beside):
    def work() -> None:
        with contextlib.ExitStack() as shown:
            for _ in range(beside):
                shown.enter_context(Bar(total=1, desc="outer"))
            assert list(Bar("abc", desc="letters")) == [*"abc"]

    assert told_by(work) == [("letters", 1, 3), ("letters", 2, 3), ("letters", 3, 3)]


def test_a_walk_along_a_hidden_bar_can_be_stopped():
    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with Bar(total=1), on_progress(stop), pytest.raises(KeyboardInterrupt):
        list(Bar("abc"))


def test_the_time_left_of_a_run_is_that_of_the_parts_to_come(monkeypatch):
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    run = WholeRun()
    run.expect({"forget set": 10, "erasing": 60, "judging": 30})
    assert run.seconds_left("forget set", 1.0) == pytest.approx(90)
    assert run.seconds_left("erasing", 0.5) == pytest.approx(20 * 60 / 40)
    assert run.seconds_left("something else", 0.5) is None


def test_bars_of_a_run_tell_what_is_left_of_it(capsys):
    with WholeRun() as whole:
        whole.expect({"drawing": 1, "erasing": 1})
        with Bar(total=2, desc="drawing", mininterval=0) as bar:
            bar.update(2)
    assert "whole run 00:00 left" in capsys.readouterr().err
