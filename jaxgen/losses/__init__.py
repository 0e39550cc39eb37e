"""Training objectives: pure functions, one number an example, in JAX alone."""
