"""Lists of classes: what is said when they do not fit together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unified_tracker._class_lists import ClassList, difference

NAMES = st.lists(st.sampled_from("abc"), max_size=4).map(tuple)


@given(NAMES)
def test_equal_lists_are_no_difference(names: tuple[str, ...]) -> None:
    assert difference(ClassList("the model", names), ClassList("the training set", names)) is None


@given(NAMES, NAMES)
def test_a_difference_is_found_from_either_side(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    a, b = ClassList("a", one), ClassList("b", other)
    assert (difference(a, b) is None) == (difference(b, a) is None) == (one == other or not one or not other)


def test_order_is_told_by_the_first_label_that_differs() -> None:
    said = difference(ClassList("a", ("x", "y", "z")), ClassList("b", ("x", "z", "y")))
    assert said == "a and b have the same classes in another order: label 1 is 'y' in the one, 'z' in the other"


def test_other_names_in_the_same_number_are_the_dangerous_case() -> None:
    said = difference(ClassList("the checkpoint c", ("car", "bus")), ClassList("the training set t", ("car", "tram")))
    assert said == (
        "the classes of the checkpoint c (2) and of the training set t (2) differ: only the checkpoint c has 'bus'; "
        "only the training set t has 'tram'; labels of the same number mean different things"
    )


def test_a_model_is_compared_by_number() -> None:
    model, data = ClassList("the model", count=80), ClassList("the training set t", ("car", "bus"))
    assert difference(model, data) == "the model has 80 classes, the training set t has 2 classes ('car', 'bus')"
    assert difference(ClassList("the model", count=2), data) is None
    assert difference(ClassList("the model"), data) is None


def test_many_names_are_cut_short() -> None:
    said = difference(ClassList("a", tuple(map(str, range(100)))), ClassList("b", ("0",)))
    assert said is not None
    assert "'10' and 89 more" in said
