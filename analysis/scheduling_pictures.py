"""The pictures of policies in `report.md`, of what the page's plots draw."""

from __future__ import annotations

from matplotlib.figure import Figure

from analysis.panels import panel_grid
from analysis.scheduling_answer import Scheduling

# Which plots of the page a picture has, and how many panels stand side by side.
PICTURES: dict[str, tuple[tuple[str, ...], int]] = {
    "scheduling": (("ttft", "itl", "e2e", "normalized", "goodput"), 2),
    "scheduling_closer": (("cdf", "fairness", "clients"), 3),
    "capacity": (("capacity",), 1),
    "fidelity": (("fidelity",), 3),
}


def scheduling_picture(found: Scheduling | None, name: str) -> Figure | None:
    """One of `PICTURES`; None where there is nothing to draw.

    Args:
        found: of the sweep.
        name: of the picture.
    """
    parts, across = PICTURES[name]
    specs = [] if found is None else [found.specs.get(f"scheduling-{part}") for part in parts]
    known = [spec for spec in specs if spec is not None]
    rows = [one["panels"][i : i + across] for one in known for i in range(0, len(one["panels"]), across)]
    legend = {one["name"]: one for spec in known for one in spec["legend"]}
    return panel_grid(rows, list(legend.values())) if rows else None
