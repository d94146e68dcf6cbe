"""Reports: self-contained HTML pages that say what a run is worth, for the screen, the phone and print."""

from ser_ray.scores.report.page import Corpora, comparison_page, run_page, search_page

__all__ = ["Corpora", "comparison_page", "run_page", "search_page"]
