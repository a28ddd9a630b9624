"""Figures for a paper from what a run has written: pass@K, corrections, intervals, reports."""
