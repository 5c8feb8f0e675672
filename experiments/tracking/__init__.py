"""Mirrors of the tables. The parquet files are the truth."""
