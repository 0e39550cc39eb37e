"""Samplers: solvers, guidance, editing, and one position at a time."""
