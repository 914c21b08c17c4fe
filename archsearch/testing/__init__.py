"""Contract suites that people who add blocks run over their own."""
