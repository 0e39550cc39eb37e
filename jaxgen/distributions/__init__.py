"""Densities of scalars, and likelihoods: what a decoder's outputs mean."""
