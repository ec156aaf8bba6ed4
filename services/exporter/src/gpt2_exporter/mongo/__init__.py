"""MongoDB: which documents an export reads, and reading them without losing one."""
