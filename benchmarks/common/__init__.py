"""Parts that the benchmarks share: the HTTP client, the timer, and the writer of tables and results."""
