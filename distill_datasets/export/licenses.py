"""What the license of a source allows for the dataset distilled from it.

Distilled pixels are derived from the source, so the source's license goes with them.
"""

import re
from typing import Any

# Identifiers of the Hub that let everybody share what is derived.
_OPEN = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "mit", "mpl-2.0",
    "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "osl-3.0", "pddl", "postgresql", "unlicense",
    "wtfpl", "zlib",
}  # fmt: skip
_RESTRICTED = re.compile(r"cc-by-(nc|nd)(-(sa|nd))?-[1-4]\.[0-9]")


def license_names(provenance: dict[str, Any]) -> list[str]:
    """The license identifiers that the source states, in lower case; [] when it states none."""
    return re.findall(r"[^,\s][^,]*", (provenance.get("license") or "").lower())


def why_restricted(provenance: dict[str, Any]) -> str | None:
    """Why the distilled dataset should not be public without somebody's consent, or None.

    Args:
        provenance: the source as recorded in the manifest.
    """
    names = license_names(provenance)
    if not names:
        return "the source states no license"
    closed = [name for name in names if name not in _OPEN]
    return f"the source's license is {', '.join(closed)}" if closed else None


def license_fields(provenance: dict[str, Any]) -> dict[str, Any]:
    """The license part of a card: the source's own, or `other` with a link to the source."""
    names = license_names(provenance)
    if names and all(name in _OPEN or _RESTRICTED.fullmatch(name) for name in names):
        return {"license": names[0] if len(names) == 1 else names}
    link = provenance.get("card_url")
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.-]+", "-", "-".join(names)) or "unknown",
        **({"license_link": link} if link else {}),
    }
