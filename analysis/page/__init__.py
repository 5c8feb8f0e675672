"""The report as one web page: everything inline, so that it opens from a file, without a network, and prints.

| file | what |
| --- | --- |
| `document.py` | which sections there are, in which order, and the page around them |
| `verdicts.py` | the first screen and the effects, as tables with a ratio plot in each row |
| `forest.py` | such a table |
| `scheduling.py` | who wins where, where policies or rates were varied |
| `precisions.py` | quality beside speed and memory, where quality was measured |
| `sections.py` | tables: points, memory, resources, failures, environment |
| `plots.py` | which plots there are |
| `series.py`, `load_curves.py`, `timelines.py` | what the interactive ones draw |
| `markup.py` | escaping, tables, figures |
| `assets/` | the style sheet, and the scripts that draw the plots and save them |
"""

from __future__ import annotations

from analysis.page.document import page

__all__ = ["page"]
