# SPDX-License-Identifier: Apache-2.0
"""The picture of the README says what the ledger says."""

import pytest

from experiments import readme_figure
from experiments.readme_figure import Estimate, Panel, read

LEDGER = """
## Elsewhere

| optimizer | score |
|---|---|
| ours | 9.0 [8.0, 9.5] |

### Bodies

Some words.

| optimizer | walker | score | failures |
|---|---|---|---|
| ours, shipped | 3 [1, 4] | **0.75** [-0.50, 0.9] | 1 % |
| Adam | 2 [1, 3] | 0.5 [0.4, 0.6] | 2 % |
| Lion | 2 [1, 3] | 0.5 | 2 % |
"""


def _panel(column: str = "score", **rows: str) -> Panel:
    return Panel("title", "### Bodies", "optimizer", column, rows)


def test_rows_are_those_of_the_table_after_the_heading() -> None:
    found = read(_panel(Adam="a rival", ours="zero tuning"), LEDGER)
    assert found == [Estimate("a rival", 0.5, 0.4, 0.6), Estimate("zero tuning", 0.75, -0.5, 0.9)]


@pytest.mark.parametrize("row", ["Muon", "Lion"])
def test_missing_row_or_interval_is_no_guess(row: str) -> None:
    with pytest.raises(ValueError, match=row):
        read(_panel(**{row: "it"}), LEDGER)


def test_missing_column_is_refused() -> None:
    with pytest.raises(ValueError, match="no table with 'speed'"):
        read(_panel("speed", ours="it"), LEDGER)


@pytest.mark.parametrize("panel", readme_figure.PANELS, ids=lambda panel: panel.column)
def test_the_ledger_has_every_row_of_the_picture(panel: Panel) -> None:
    rows = read(panel, readme_figure.LEDGER.read_text())
    assert [row.label for row in rows] == list(panel.rows.values())
    assert all(row.low <= row.value <= row.high for row in rows)


def test_a_panel_has_a_point_a_row() -> None:
    rows = read(_panel(ours="ours", Adam="a rival"), LEDGER)
    (axes,) = readme_figure.draw([("title", rows)]).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a rival", "ours"]
