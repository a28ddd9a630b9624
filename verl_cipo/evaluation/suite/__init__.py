"""Benchmarks sampled with vLLM, and the second turn of their answers: `evaluate --suite`, `--second-turns`."""
