"""What turns one genome into another, in words."""

from hypothesis import given, settings

from archsearch.genome import Gene, Genome
from archsearch.report.edits import edits
from archsearch.search import ablation
from tests.strategies import genomes


@settings(max_examples=60, deadline=None)
@given(one=genomes(), other=genomes())
def test_something_is_said_of_different_genomes_and_nothing_of_equal_ones(one, other):
    assert edits(one, one, ()) == []
    assert bool(edits(one, other, ())) == (one != other)


MIXED = (
    Gene.of("mamba2"), Gene.of("swiglu"), Gene.of("attention", "A"), Gene.of("swiglu", mult=2),
    Gene.of("attention", "A"), Gene.of("loop", of=[Gene.of("gla")]),
)  # fmt: skip


def test_one_edit_is_one_thing_to_say_and_names_its_place():
    genome = Genome(64, MIXED)
    others = [Genome(64, (Gene.of("gla"), Gene.of("kan"), Gene.of("attention", heads=2)))]
    known = ablation.edits(genome, others)
    assert len(known) > 12
    for edit in known:
        told = edits(genome, edit.genome, ())
        if "moved" not in edit.what and "removed" not in edit.what and "unshared" not in edit.what:
            assert len(told) <= 2, (edit.what, told)  # an attention that is alone shares no more
            assert any(edit.what.split(":")[0] in phrase.split(":")[0] for phrase in told)
    removed = {e.what: edits(genome, e.genome, ()) for e in known if "removed" in e.what}
    assert removed["1: mamba2 removed"] == ["1: mamba2 removed"]
    assert removed["2: swiglu removed"] == ["2: swiglu removed"]


def test_equal_edits_of_several_places_are_said_once():
    before = Genome(64, (Gene.of("mamba2"), Gene.of("swiglu")) * 3)
    after = Genome(96, (Gene.of("attention"), Gene.of("swiglu")) * 3)
    assert edits(before, after, ()) == [
        "width 64 -> 96",
        "1, 3 and 5: mamba2 replaced by attention",
    ]


def test_a_value_a_move_and_what_a_wrapper_holds():
    genes = (
        Gene.of("mamba2"),
        Gene.of("attention", window=8),
        Gene.of("loop", of=[Gene.of("gla")]),
    )
    before = Genome(64, genes)
    wider = Genome(64, (genes[0], Gene.of("attention"), genes[2]))
    assert edits(before, wider, ()) == ["2: attention window 8 -> none"]
    held = Genome(64, (*genes[:2], Gene.of("loop", of=[Gene.of("attention")])))
    assert edits(before, held, ()) == ["3.1: gla replaced by attention"]
    moved = Genome(64, (genes[2], *genes[:2]))
    assert edits(before, moved, ()) == ["3: loop moved to the front"]


def test_what_comes_new_is_named_with_the_parameters_that_vary():
    before = Genome(64, (Gene.of("mamba2"),))
    after = Genome(64, (Gene.of("mamba2"), Gene.of("attention", heads=2, window=8)))
    told = edits(before, after, {("attention", "window")})
    assert told == ["behind 1: attention (window 8) added"]
