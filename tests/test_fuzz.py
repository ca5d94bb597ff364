from fuzz import good_folders, run_cases
from fuzz_kinds import KINDS


def test_broken_files_of_every_kind_are_refused_in_a_sentence_or_harmless():
    with good_folders() as place:
        found = run_cases(place, seeds=[0, 1], cases=200, kinds=list(KINDS))
    outcomes = [case for cases, *_ in found.values() for case in cases]
    assert [case for case in outcomes if case.result == "fault"] == []
    assert {case.result for case in outcomes} == {"succeeded", "refused"}
    assert {case.kind for case in outcomes} == KINDS.keys()
