"""Families: a network, its losses and its sampler as one `jaxgen.core.Family`."""
