import pytest
from conftest import CATALOGUE

from erase.request import EraseRequest, expand, sample


def test_an_object_is_forgotten_in_every_style_and_by_its_synonyms():
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE)
    texts = {prompt.text for prompt in prompts.forget}
    assert texts == {
        "a ghost in ink style",
        "a ghost in noto style",
        "a boo in ink style",
        "a boo in noto style",
    }
    assert {prompt.anchor for prompt in prompts.forget} == {
        "a skull in ink style",
        "a skull in noto style",
    }
    assert not any("ghost" in p.text or "boo" in p.text for p in prompts.retain)
    assert len(prompts.retain) == 6


def test_a_style_is_forgotten_on_every_object():
    prompts = expand(EraseRequest(["ink style"], anchors=["noto style"]), CATALOGUE)
    assert {(p.text, p.anchor) for p in prompts.forget} == {
        (f"a {name} in ink style", f"a {name} in noto style") for name in CATALOGUE.objects
    }
    assert {p.kind for p in prompts.forget + prompts.retain} == {"style"}


def test_several_concepts_never_anchor_on_each_other():
    prompts = expand(EraseRequest(["ghost", "skull"]), CATALOGUE)
    assert {p.anchor for p in prompts.forget} == {"a pizza in ink style", "a pizza in noto style"}


def test_models_without_a_catalogue_take_the_request_at_its_word():
    request = EraseRequest(["Van Gogh"], retain=["Monet"], templates=["a painting by {concept}"])
    prompts = expand(request, None)
    assert [p.text for p in prompts.forget] == ["a painting by Van Gogh"]
    assert [p.anchor for p in prompts.forget] == ["a painting by"]
    assert [p.text for p in prompts.retain] == ["a painting by Monet"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: EraseRequest([]), "empty"),
        (lambda: EraseRequest(["  "]), "empty"),
        (lambda: EraseRequest(["ghost"], anchors=["ghost"]), "anchor"),
        (lambda: EraseRequest(["ghost"], anchors=["a", "b"]), "one each"),
        (lambda: expand(EraseRequest(["ghots"]), CATALOGUE), "did you mean ghost"),
        (lambda: expand(EraseRequest(["ghost"], anchors=["boo"]), CATALOGUE), "anchor"),
        (lambda: expand(EraseRequest(["dog"]), None), "--retain"),
        (lambda: expand(EraseRequest(["ink style", "noto style"]), CATALOGUE), "Nothing is left"),
    ],
)
def test_bad_requests_get_one_sentence(request_, message):
    with pytest.raises(ValueError, match=message) as caught:
        request_()
    assert "\n" not in str(caught.value)


def test_sampling_goes_through_every_prompt_before_it_repeats_one():
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE).retain
    drawn = sample(prompts, 2 * len(prompts), seed=3)
    texts = [prompt.text for prompt in drawn]
    assert sorted(texts[: len(prompts)]) == sorted(texts[len(prompts) :])
    assert drawn == sample(prompts, 2 * len(prompts), seed=3)
