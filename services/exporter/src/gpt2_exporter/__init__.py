"""The exporter: text out of databases and files, into corpora."""
