"""Tables, plots and pages from results.json. Knows no method and imports no torch."""

from luthier.report.console import print_report
from luthier.report.write import write_report

__all__ = ["print_report", "write_report"]
