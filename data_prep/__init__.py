"""Converters from published data sets to verl's parquet schema; see docs/data.md."""
