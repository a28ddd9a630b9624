"""A batch's way through the rollout workers of verl's V1 trainers: attempts, anchors, corrections, verdicts."""
