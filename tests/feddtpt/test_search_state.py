"""What helped is drawn more often, what failed not again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedfuse.errors import FedfuseError
from fedfuse.feddtpt.search_state import NO_TOKEN, Edit, Feedback

IDS = np.array([5, 6, 7])


@pytest.mark.parametrize(
    ("edit", "after"),
    [
        (Edit("replace", 1, 2, 9), (1, 9, 3)),
        (Edit("insert", 0, 1, 9), (9, 1, 2, 3)),
        (Edit("insert", 3, NO_TOKEN, 9), (1, 2, 3, 9)),
        (Edit("delete", 2, 3, NO_TOKEN), (1, 2)),
    ],
)
def test_edits(edit: Edit, after: tuple[int, ...]) -> None:
    assert edit.apply((1, 2, 3)) == after


def test_places_follow_what_happened_there() -> None:
    feedback = Feedback()
    assert feedback.places("replace", (1, 2)).tolist() == [0.5, 0.5]
    feedback.helped(Edit("replace", 0, 1, 5))
    feedback.rejected(Edit("replace", 1, 2, 5), worse=True)
    feedback.rejected(Edit("replace", 1, 2, 6), worse=False)
    np.testing.assert_allclose(feedback.places("replace", (1, 2, 3)), np.array([1.3, 0.8, 1]) / 3.1)
    assert feedback.places("insert", (1, 2)).tolist() == [0.5, 0.5]
    for token in range(99):
        feedback.helped(Edit("replace", 0, 1, token))
        feedback.rejected(Edit("replace", 0, 2, token), worse=True)
    np.testing.assert_allclose(feedback.places("replace", (1, 2)), np.array([3, 0.3]) / 3.3)


def test_tokens_that_helped_get_credit_until_they_are_replaced() -> None:
    feedback = Feedback()
    feedback.helped(Edit("insert", 0, 1, 6))
    assert feedback.bonus(IDS).tolist() == [0.0, 1.0, 0.0]
    feedback.helped(Edit("insert", 4, 1, 6))
    feedback.helped(Edit("insert", 2, 6, 6))  # before a 6, which stays
    assert feedback.bonus(IDS).tolist() == [0.0, 2.0, 0.0]
    feedback.helped(Edit("replace", 0, 6, 5))
    assert feedback.bonus(IDS).tolist() == [1.0, 0.0, 0.0]
    feedback.helped(Edit("delete", 0, 5, NO_TOKEN))
    assert feedback.bonus(IDS).tolist() == [0.0, 0.0, 0.0]


def test_what_failed_is_closed_at_such_places_alone() -> None:
    feedback = Feedback()
    feedback.rejected(Edit("replace", 0, 1, 6), worse=False)
    assert feedback.open("replace", 1, IDS).tolist() == [True, False, True]
    assert feedback.open("replace", 2, IDS).all()
    assert feedback.open("insert", 1, IDS).all()


def test_it_survives_as_json() -> None:
    feedback = Feedback()
    feedback.helped(Edit("replace", 0, 1, 5))
    feedback.rejected(Edit("insert", 0, NO_TOKEN, 5), worse=True)
    assert Feedback.from_plain(json.loads(json.dumps(feedback.to_plain()))) == feedback
    for wrong in ({}, [], {"weights": [[1]], "credit": [], "failed": []}, None):
        with pytest.raises(FedfuseError, match="expected a search's feedback"):
            Feedback.from_plain(wrong)
