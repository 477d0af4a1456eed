"""Reports, pure functions of records: ``run`` about one run, ``bench`` about the benchmark; what both share is here."""
