"""The table on a terminal of 80 columns: nothing is cut off."""

import io

from rich.console import Console

from luthier.report.console import print_report
from luthier.report.table import build_table


def test_every_number_and_name_is_whole(several):
    screen = io.StringIO()
    print_report(several, Console(width=80, file=screen))
    shown = screen.getvalue()
    for row in build_table(several).rows:
        assert all(cell.text in shown for cell in row[:5])
        assert row[0].text in shown
