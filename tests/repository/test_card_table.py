import pytest

from bench.gpu import memory
from bench.gpu.memory import Line, card_table
from bench.predict.__main__ import cases, prediction_table, step_table
from tests.support.places import ROOT

OPERATIONS = ROOT / "docs" / "operations.md"


def test_the_documentation_says_what_runs_on_which_card() -> None:
    assert card_table() in OPERATIONS.read_text("utf-8")


def test_the_documentation_says_what_each_card_is_predicted_to_take() -> None:
    text = OPERATIONS.read_text("utf-8")

    assert prediction_table() in text
    assert step_table() in text


def test_every_card_of_the_documentation_has_a_prediction() -> None:
    predicted = [case.card.removesuffix(" 40 GB") for case in cases()]

    assert predicted == [card for line in memory.LINES for card in line.cards]


def test_cards_that_would_not_all_run_the_same_are_not_put_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    unlike = Line("80 GB: {cards}", 80, ("A100", "L40S"))
    monkeypatch.setattr(memory, "LINES", (unlike,))

    with pytest.raises(ValueError, match="run in 2 ways, expected one"):
        card_table()
