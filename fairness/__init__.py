"""Fairness from counts: sites count, the coordinator adds, every metric and its interval comes from the sum.

``summary.py`` is the front door on the coordinator, ``histograms.py`` is what a site runs.
"""
