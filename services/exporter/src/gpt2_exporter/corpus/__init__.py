"""Corpora: documents of any source, written as Parquet shards by a pipeline that resumes after a kill."""
