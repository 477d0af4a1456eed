"""What is said of the benchmark: its pages, with tables and plots of the suites beside the numbers of the paper."""
