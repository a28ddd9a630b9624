"""What moves from step to step by what was measured."""
