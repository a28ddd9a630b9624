"""Verifiers of answers: functions for verl's `reward.custom_reward_function`. Nothing here imports verl."""
