"""What benchmarks/schedule.py measures with: generation phases of each schedule, on a simulated engine and on vLLM."""
