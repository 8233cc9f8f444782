"""The sentence of the standard protocol is that of its table."""

from typing import Any

from distill_datasets.evaluation.statement import statement


def row(key: str, words: str) -> dict[str, Any]:
    return {"key": key, "words": words, "regime": key.split("/")[1]}


def difference(regime: str, against: str, mean: float, half: float | None) -> dict[str, Any]:
    verdict = (
        "undecided" if half is None or abs(mean) <= half else "better" if mean > 0 else "worse"
    )
    return {"regime": regime, "against": against, "mean": mean, "half": half, "verdict": verdict}


ROWS = [row("class_mean/HL", "class means"), row("webp/SL-1", "WebP"), row("webp/HL", "WebP")]


def test_each_regime_is_compared_with_its_best_selection() -> None:
    differences = [
        difference("HL", "class_mean/HL", -0.318, 0.015),
        difference("SL-1", "class_mean/HL", 0.019, 0.012),
        difference("SL-1", "webp/SL-1", 0.4, 0.1),
    ]
    best = {"HL": "class_mean/HL", "SL-1": "class_mean/HL"}
    assert statement(ROWS, differences, best, {"HL": 8, "SL-1": 8}) == (
        "With hard labels and no more pixels, values or bytes these images do worse than the best "
        "of 8 real selections (class means): -31.8 ± 1.5 points; with the published labels they "
        "beat the best of 8 real selections (class means with hard labels): +1.9 ± 1.2 points."
    )


def test_one_student_has_no_interval_and_decides_nothing() -> None:
    differences = [difference("HL", "webp/HL", 0.3, None)]
    said = statement(ROWS, differences, {"HL": "webp/HL"}, {"HL": 1})
    assert said is not None and "are not shown to beat the one real selection (WebP)" in said
    assert said.endswith("+30.0 points (one student, no interval).")


def test_without_a_selection_of_real_images_nothing_is_said() -> None:
    assert statement(ROWS, [], {}, {}) is None
