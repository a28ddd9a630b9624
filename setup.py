"""Shim for tools that want a setup.py; pyproject.toml is the truth."""

from setuptools import setup

setup()
