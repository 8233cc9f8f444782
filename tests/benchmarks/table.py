"""A result as a table: `python -m tests.benchmarks.table FILE` prints it for recipes/RESULTS.md."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

COLUMNS = (
    "work", "side", "seconds", "processor s", "peak MiB", "ratio", "by processor", "official",
    "GFLOP", "GB", "of product", "of copy",
)  # fmt: skip


def lines(result: dict[str, Any]) -> list[list[str]]:
    """One row of text per side."""
    found = []
    for work in result["works"]:
        for place, row in enumerate(work["rows"]):
            target = "" if row["target"] is None else f" (target {row['target']:.2g})"
            found.append(
                [
                    "" if place else work["text"],
                    row["side"],
                    f"{row['seconds']:.3g}",
                    f"{row['processor_seconds']:.3g}",
                    f"{row['peak_mib']:,.0f} ({row['own_mib']:,.0f})",
                    f"{row['ratio']:.2f}{target}",
                    f"{row['processor_ratio']:.2f}",
                    f"{row['official_ratio']:.2f}" if row.get("official_ratio") else "",
                    # what runs in threads of the library is not counted
                    f"{row['flops'] / 1e9:.3g}" if row["bytes"] else "",
                    f"{row['bytes'] / 1e9:.3g}" if row["bytes"] else "",
                    f"{100 * row['share_of_product']:.0f} %",
                    f"{100 * row['share_of_copy']:.0f} %" if row["bytes"] else "",
                ]
            )
    return found


def caption(result: dict[str, Any]) -> str:
    """Where and when it was measured, and what the columns mean."""
    place = result["environment"]
    tops = [work["ceiling"] for work in result["works"]]
    product, copy = (max(top[kind] for top in tops) / 1e9 for kind in ("float32_flops", "bytes"))
    return (
        f"{place['device_name']}, {place['threads']} thread(s), torch {place['torch']}, "
        f"{place['date']}. Medians of runs in turns; ratio: the reference's seconds over a side's. "
        "Official: the processor seconds of the authors' own program over a side's. "
        f"Memory: {place['memory']} (in brackets: above what was prepared). GFLOP and GB are "
        "counted by torch's dispatcher, GB as if every operation read and wrote memory. Of "
        f"product: the reference's GFLOP per second of this side over a float32 product timed in "
        f"turns with it, {product:.0f} GFLOP/s at best; of copy: GB per second over a copy, "
        f"{copy:.1f} GB/s at best, above 100 % where caches "
        "serve; both by the seconds that threads were given."
    )


def rich_table(result: dict[str, Any]) -> Table:
    """For the terminal."""
    table = Table(*COLUMNS, caption=caption(result), caption_justify="left")
    for line in lines(result):
        table.add_row(*line)
    return table


def markdown(result: dict[str, Any]) -> str:
    """For recipes/RESULTS.md."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *lines(result)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{table}\n\n{caption(result)}\n"


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")
