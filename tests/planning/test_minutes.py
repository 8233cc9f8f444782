"""Minutes are promised for recipes whose networks are trained first, too: stage by stage."""

import pytest

from distill_datasets.planning import minutes
from distill_datasets.planning.minutes import minutes_of
from distill_datasets.presets import recipe_for
from distill_datasets.recipe import Recipe, load_recipe

DIGITS = "embedded:uci-digits"
NETWORK = "{name: convnet, depth: 2, width: 4}"
FEW = ["source.limit=200", "evaluate.beyond=null", f"evaluate.network={NETWORK}"]


def small(method: str) -> Recipe:
    return recipe_for(DIGITS, method, [*FEW, f"squeeze.network={NETWORK}"])


def guided() -> Recipe:
    return load_recipe("mnist/guided", [f"source.dataset={DIGITS}", *FEW])


@pytest.mark.parametrize(
    ("recipe", "counted"),
    [
        (small("mtt"), {"squeeze", "distill"}),
        (small("rded"), {"squeeze", "relabel", "labels of references"}),
        (guided(), {"squeeze", "generator", "relabel", "labels of references"}),
    ],
    ids=["experts", "teachers", "generator"],
)
def test_every_stage_that_trains_or_asks_networks_has_its_time(
    recipe: Recipe, counted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "ASKED_SECONDS", 0.05)
    found = minutes_of(recipe)
    assert found is not None and set(found.counted) == counted
    assert all(seconds > 0 for seconds in found.counted.values())
    assert found.total == pytest.approx(found.source + sum(found.counted.values()) + found.evaluate)
    words = dict(found.lines())
    assert counted <= words.keys() and "distill" not in words.keys() - counted


def test_no_minutes_are_promised_where_work_is_not_counted() -> None:
    recipe = small("sre2l")
    objective = recipe.distill.objective

    class Uncounted(type(objective)):  # type: ignore[misc]
        def work(self, flops_per_image: float, examples: int, classes: int) -> None:
            return None

    unknown = Uncounted.model_construct(**dict(objective))
    distill = recipe.distill.model_copy(update={"objective": unknown})
    assert minutes_of(recipe.model_copy(update={"distill": distill})) is None
