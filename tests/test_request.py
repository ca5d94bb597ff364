from dataclasses import replace

import pytest
from hosts import CATALOGUE

from erase.prompts.request import EraseRequest, expand, find_concept, in_its_names, sample


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
        "a pizza in ink style",
        "a pizza in noto style",
    }
    assert not any("ghost" in p.text or "boo" in p.text for p in prompts.retain)
    assert len(prompts.retain) == 6


def test_a_style_is_forgotten_on_every_object():
    prompts = expand(EraseRequest(["ink style"], anchors=["noto style"]), CATALOGUE)
    assert {(p.text, p.anchor) for p in prompts.forget} == {
        (f"a {name} in ink style", f"a {name} in noto style") for name in CATALOGUE.objects
    }
    assert {p.kinds for p in prompts.forget + prompts.retain} == {("style",)}


def test_several_concepts_never_anchor_on_each_other():
    prompts = expand(EraseRequest(["ghost", "pizza"]), CATALOGUE)
    anchors = {p.group: p.anchor.split()[1] for p in prompts.forget}
    assert anchors == {"ghost": "rocket", "pizza": "skull"}


def test_the_catalogue_may_name_the_anchor():
    catalogue = replace(CATALOGUE, anchors={"ghost": "pizza"})
    assert {p.anchor for p in expand(EraseRequest(["ghost"]), catalogue).forget} >= {
        "a pizza in ink style"
    }
    both = expand(EraseRequest(["ghost", "pizza"]), catalogue)
    assert "pizza" not in {p.anchor.split()[1] for p in both.forget}


def test_models_without_a_catalogue_take_the_request_at_its_word():
    request = EraseRequest(["Van Gogh"], retain=["Monet"], templates=["a painting by {concept}"])
    prompts = expand(request, None)
    assert [p.text for p in prompts.forget] == ["a painting by Van Gogh"]
    assert [p.anchor for p in prompts.forget] == ["a painting by"]
    assert [p.text for p in prompts.retain] == ["a painting by Monet"]


def test_judges_choose_among_names_that_differ():
    request = EraseRequest(["dog", "cat"], anchors=["Fox", ""], retain=["fox", "car"])
    prompts = expand(request, None)
    assert prompts.labels == {"concept": ["dog", "cat", "fox", "car"]}
    assert {p.anchor for p in prompts.forget} >= {"Fox", ""}


def test_braces_that_are_meant_are_kept():
    request = EraseRequest(["dog"], retain=["car"], templates=["{{{concept}}} drawn"])
    assert [p.text for p in expand(request, None).forget] == ["{dog} drawn"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: EraseRequest([]), "empty"),
        (lambda: EraseRequest(["  "]), "empty"),
        (lambda: EraseRequest(["ghost"], anchors=["ghost"]), "anchor"),
        (lambda: EraseRequest(["ghost"], anchors=["a", "b"]), "one each"),
        (lambda: expand(EraseRequest(["ghots"]), CATALOGUE), "did you mean ghost"),
        (lambda: expand(EraseRequest(["ghost"], anchors=["boo"]), CATALOGUE), "anchor"),
        (lambda: expand(EraseRequest(["ghost"], anchors=["ink style"]), CATALOGUE), "of kind"),
        (lambda: expand(EraseRequest(["ghost", "boo"]), CATALOGUE), "the same one"),
        (lambda: EraseRequest("ghost"), "list of names"),
        (lambda: EraseRequest(["ghost"], redirect="anchors"), "redirect is 'anchors'; choose"),
        (lambda: EraseRequest(["dog"], retain=["dog"]), "both forgotten and retained"),
        (lambda: EraseRequest(["Van Gogh"], retain=["van  gogh", "dog"]), "both forgotten"),
        (lambda: EraseRequest(["ghost"], anchors=["Ghost "]), "itself"),
        (lambda: EraseRequest(["caf\u00e9"], anchors=["cafe\u0301"]), "itself"),
        (lambda: EraseRequest(["a", "b"], anchors=["B", "c"]), "forgotten itself"),
        (lambda: EraseRequest(["a", "A"], anchors=["b", "c"]), "concepts are the same one"),
        (lambda: EraseRequest(["a"], retain=["b", "B\t"]), "retained names are the same one"),
        (lambda: EraseRequest(["a"], retain=["b", " "]), "retain is empty"),
        (lambda: EraseRequest([True]), "give texts"),
        (lambda: EraseRequest(["a"], templates=["{concept} in {style}"]), "alone"),
        (lambda: EraseRequest(["a"], templates=["{concept!r:>9}"]), "alone"),
        (lambda: EraseRequest(["a"], templates=["{concept"]), "'{concept' must hold"),
        (lambda: EraseRequest(["a"], templates=["{{concept}}"]), "alone"),
        (lambda: EraseRequest(["a"], templates=[]), "alone"),
        (lambda: expand(EraseRequest(["ghost"], templates=["{concept}"]), CATALOGUE), "unread"),
        (lambda: EraseRequest(["a"], retain=None), "retain is None; give"),
        (lambda: EraseRequest(["a"], anchors={"a": "b"}), "anchors is .*; give"),
        (lambda: EraseRequest(["a"], seed="1"), "seed is '1'; give"),
        (lambda: expand(EraseRequest(["ghost"], retain=["boo", "pizza"]), CATALOGUE), "both"),
        (lambda: expand(EraseRequest(["ink style"], retain=["ink"]), CATALOGUE), "both"),
        (lambda: expand(EraseRequest(["dog"]), None), "--retain"),
        (lambda: expand(EraseRequest(["ink style", "noto style"]), CATALOGUE), "Nothing is left"),
    ],
)
def test_bad_requests_get_one_sentence(request_, message):
    with pytest.raises(ValueError, match=message) as caught:
        request_()
    assert "\n" not in str(caught.value)


def test_prompts_without_a_style_are_forgotten_and_retained_too():
    known = replace(CATALOGUE, object_templates=["a picture of {a} {object}"])
    prompts = expand(EraseRequest(["ghost"]), known)
    plain = [p for p in prompts.forget + prompts.retain if "style" not in p.labels]
    assert {p.text for p in plain} == {
        f"a picture of a {name}" for name in ("ghost", "boo", "skull", "pizza", "rocket")
    }
    assert {p.anchor for p in plain} == {"a picture of a pizza", ""}
    styled = expand(EraseRequest(["ink style"]), known)
    assert all("style" in p.labels for p in styled.forget + styled.retain)


def test_an_object_and_a_style_together():
    prompts = expand(EraseRequest(["ghost", "ink style"], ["skull", "noto style"]), CATALOGUE)
    both = next(p for p in prompts.forget if p.text == "a ghost in ink style")
    assert (both.kinds, both.anchor) == (("object", "style"), "a skull in noto style")
    assert {p.kinds for p in prompts.retain} == {("object", "style")}
    assert {p.text for p in prompts.retain} == {
        f"a {name} in noto style" for name in ("skull", "pizza", "rocket")
    }
    groups = [p.group for p in sample(prompts.forget, 8, seed=0)]
    assert groups.count("ghost") == groups.count("ink style") == 4


def test_names_are_kept_in_one_spelling():
    asked = EraseRequest([" cafe\u0301  noir\n"], anchors=[""], retain=["th\u00e9"])
    assert (asked.concepts, asked.anchors, asked.retain) == (("café noir",), ("",), ("thé",))


def test_names_are_found_in_any_case_and_by_synonym():
    known = replace(CATALOGUE, styles=["Van Gogh"])
    assert str(find_concept("van gogh STYLE", known)) == "Van Gogh style"
    assert str(find_concept("Boo", known)) == "ghost"
    asked = EraseRequest(["BOO"], ["Skull"], retain=["pizza", "van gogh", "Van Gogh style"])
    same = EraseRequest(["ghost"], ["skull"], retain=["pizza", "Van Gogh style"])
    assert in_its_names(asked, known) == same
    assert in_its_names(asked, None) == asked


def test_sampling_goes_through_every_prompt_before_it_repeats_one():
    prompts = expand(EraseRequest(["ghost"]), CATALOGUE).retain
    drawn = sample(prompts, 2 * len(prompts), seed=3)
    texts = [prompt.text for prompt in drawn]
    assert sorted(texts[: len(prompts)]) == sorted(texts[len(prompts) :])
    assert drawn == sample(prompts, 2 * len(prompts), seed=3)
