"""What a recipe of squeeze, recover and relabel must not ask for, found before anything is read."""

from pathlib import Path
from typing import Any

import pytest
from support.toy_runs import toy_sections
from test_scale import RECIPE

from distill_datasets.errors import ArtifactError, RecipeError
from distill_datasets.export.content import sibling_of
from distill_datasets.pipeline.checks import check_output
from distill_datasets.recipe import recipe_from

JOINT: dict[str, Any] = {
    **RECIPE,
    "distill": {
        **toy_sections()["distill"],
        "labels": "logits",
        "canvas": {"name": "pixels", "ipc": 1},
    },
}


@pytest.mark.parametrize(
    ("content", "override", "words"),
    [
        (RECIPE, "squeeze=null", r"squeeze: missing; .*'teachers' and relabel need networks"),
        (RECIPE, "relabel=null", "kl compares with a teacher's logits, which a relabel section"),
        (RECIPE, "source.normalization=zca", "8-bit images are seen through a mean"),
        (RECIPE, "distill.networks=fresh", "'fresh' does not offer batch_norm"),
        (RECIPE, "distill.canvas.ipc=null", "ipc"),
        (RECIPE, "distill.labels=learned", "whose images are of one class each; expected area"),
        (JOINT, "seed=1", "relabel: got it with the objective 'unrolled', which learns"),
    ],
)
def test_what_cannot_work_is_refused(content: dict[str, Any], override: str, words: str) -> None:
    recipe_from(RECIPE)
    with pytest.raises(RecipeError, match=words):
        recipe_from(content, [override])


def test_labels_that_would_overwrite_something_are_refused_first(tmp_path: Path) -> None:
    recipe = recipe_from(RECIPE)
    check_output(tmp_path / "out", recipe)
    sibling_of(tmp_path / "out").mkdir()
    check_output(tmp_path / "out", recipe)
    (sibling_of(tmp_path / "out") / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="something else is there"):
        check_output(tmp_path / "out", recipe)
