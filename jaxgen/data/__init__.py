"""Sources of examples, and the pipeline from (seed, step) to a batch."""
