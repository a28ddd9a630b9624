"""The learning experiment: its arms, its runs, and the figures made of them (benchmarks/learning.py)."""
