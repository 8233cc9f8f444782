"""Results in words: tuned rows, other networks, the worst of them, and sets that teach nothing."""

from typing import Any

import pytest
from support.sample_content import RESULTS, sample

from distill_datasets.export.card import card
from distill_datasets.export.content import budget
from distill_datasets.export.summary import at_chance, tuned, wider, worst


def accuracy(mean: float, std: float | None = 0.01) -> dict[str, Any]:
    return {"mean": mean, "std": std}


def row(name: str, mean: float, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    base = {"from": name, "accuracy": accuracy(mean), "chance": 0.1, "network": "own", "steps": 40}
    return {**RESULTS[0], **base, **more}


def beyond(*means: float) -> list[dict[str, Any]]:
    places = [("own", 80), ("mlp", 40), ("mlp", 80)]
    return [
        {"network": network, "steps": steps, "accuracy": accuracy(mean)}
        for (network, steps), mean in zip(places, means, strict=True)
    ]


TUNED_RUNS = [{"seed": 0, "accuracy": 0.91}, {"seed": 1, "accuracy": 0.93}]
MEASURED = [
    row(
        "default",
        0.912,
        tuned={"accuracy": accuracy(0.92), "lr": 0.0099, "steps": 600, "runs": TUNED_RUNS},
        beyond=beyond(0.7, 0.6, 0.5),
        worst={"network": "mlp", "steps": 80, "accuracy": accuracy(0.5)},
    ),
    row("exact", 0.915),
    row(
        "class_mean",
        0.8,
        beyond=beyond(0.81, 0.82, 0.83),
        worst={"network": "own", "steps": 40, "accuracy": accuracy(0.8)},
    ),
]


def text_of(results: list[dict[str, Any]]) -> str:
    spent = {**budget(sample()), "bytes": {"default": 1, "constants": 0, "needed": 1}}
    return card(sample(), results, spent, "0123")


def test_the_tables_are_short_and_the_best_reference_stands_behind_a_slash() -> None:
    found = wider(MEASURED)
    assert found is not None
    assert (found.names, found.multiples) == (["default", "class_mean"], ["1x", "2x"])
    assert found.rows == [
        ("own", ["91.2 / 80.0", "70.0 / 81.0"]),
        ("mlp", ["60.0 / 82.0", "50.0 / 83.0"]),
    ]
    assert worst(MEASURED[0]) == "50.0 % (mlp, 80 steps)"
    assert tuned(MEASURED[0]) == "92.0 ± 1.0 (lr 0.0099, 600 steps)" and tuned(MEASURED[1]) == "-"
    assert wider(RESULTS) is None


def test_the_card_says_them() -> None:
    text = text_of(MEASURED)
    assert "| mlp | 60.0 / 82.0 | 50.0 / 83.0 |" in text
    assert "this dataset / class means, no more pixels, the best of the references." in text
    assert "Worst of these: 50.0 % (mlp, 80 steps); of class means" in text
    assert "92.0 ± 1.0 (lr 0.0099, 600 steps)" in text
    plain = text_of(RESULTS)
    assert "tuned" not in plain and "Worst" not in plain


@pytest.mark.parametrize(
    ("chance", "mean", "says"),
    [
        *((0.1, 0.102, True), (0.1, 0.14, True), (0.1, 0.2, False)),
        *((0.5, 0.52, True), (0.5, 0.6, False), (0.001, 0.0014, True), (0.001, 0.003, False)),
    ],
)
def test_a_set_at_chance_is_said_to_be(chance: float, mean: float, says: bool) -> None:
    results = [row("default", mean, chance=chance)]
    assert (at_chance(results) is not None) == says
    assert ("[!WARNING]" in text_of(results)) == says
