"""The benchmark: suites of cells, each computed once and kept as one record."""
