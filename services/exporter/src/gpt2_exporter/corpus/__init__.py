"""Corpora: records from any source, written as Parquet shards that survive a kill."""
