"""The machines that the Hub lends for jobs, and their prices."""

from typing import NamedTuple

from distill_datasets.hub.errors import failures


class Flavor(NamedTuple):
    """A machine: its name, and dollars a minute where the Hub has told them."""

    name: str
    dollars_a_minute: float | None


def flavors() -> dict[str, Flavor]:
    """All machines by name; of a Hub that cannot be asked the names that its client knows."""
    import huggingface_hub

    # releases of the client before 1.0 know no prices
    api = huggingface_hub.HfApi()
    ask = getattr(api, "list_jobs_hardware", None)
    try:
        told = [] if ask is None else ask()
    except failures():
        told = []
    if told:
        return {each.name: Flavor(each.name, _a_minute(each)) for each in told}
    known = getattr(huggingface_hub, "JobHardware", ())
    return {each.value: Flavor(each.value, None) for each in known}


def _a_minute(machine: object) -> float | None:
    per = {"minute": 1.0, "hour": 60.0, "second": 1 / 60}.get(
        str(getattr(machine, "unit_label", ""))
    )
    cost = getattr(machine, "unit_cost_usd", None)
    return None if per is None or cost is None else float(cost) / per
