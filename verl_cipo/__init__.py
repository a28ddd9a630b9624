"""Correction-Oriented Policy Optimization (CIPO) as a plugin for verl."""

__version__ = "0.1.0"
