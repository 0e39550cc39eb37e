"""Sources of examples, and the one pipeline from (seed, step) to a batch."""
