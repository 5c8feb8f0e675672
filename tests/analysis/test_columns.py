from __future__ import annotations

import pytest

from analysis.columns import TABLES
from experiments.tables import SCHEMAS


@pytest.mark.parametrize("table", sorted(TABLES))
def test_what_is_read_is_what_is_written(table: str) -> None:
    assert set(TABLES[table]) <= set(SCHEMAS[table].names)
