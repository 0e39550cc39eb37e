"""Everything to ask of an accelerator in its first minutes; see `__main__`."""
