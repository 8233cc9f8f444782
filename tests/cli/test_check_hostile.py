"""`check` ends for every text: with the recipe's hash, or with an error of a few lines."""

from pathlib import Path

import pytest
from support.recipe_texts import recipe_text
from support.toy_runs import command

BATCH = 100
COUNT = 2000


@pytest.mark.parametrize(
    "first",
    [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(BATCH, COUNT, BATCH))],
)
def test_a_generated_recipe_is_checked_or_refused_in_few_words(tmp_path: Path, first: int) -> None:
    path = tmp_path / "recipe.yaml"
    valid = 0
    for seed in range(first, first + BATCH):
        made = recipe_text(seed)
        path.write_bytes(made.content)
        answer = command("check", str(path), "--", *made.overrides)
        who = f"recipe_text({seed})"
        if answer.code == 0:
            assert ": valid, sha256 " in answer.out and not answer.err, who
            valid += made.kind == "valid"
            continue
        assert answer.code == 2 and not answer.out, (who, answer)
        assert answer.err.startswith("error: ") and made.kind != "valid", (who, answer.err)
        lines = answer.err.splitlines()
        assert len(lines) <= 42 and max(map(len, lines)) <= 1500, (who, answer.err[:3000])
        assert answer.err.isascii() or answer.err.encode(), who
    assert valid == len([seed for seed in range(first, first + BATCH) if seed % 3 == 0])
