"""Figures and reports from analysis results; matplotlib is imported when something is drawn.

Every figure function returns a ``matplotlib.figure.Figure`` and touches no global state.
``style.to_svg`` turns one into text for a page, ``report.write_report`` makes the page.
"""
