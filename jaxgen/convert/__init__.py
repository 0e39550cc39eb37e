"""Weights in and out: our own files, and those of other packages.

`weights` writes a trained run into one safetensors file that describes itself, `pretrained` opens
it, and whole folders of diffusers (`diffusers_folder`, `diffusers_scheduler`). Each other module is
a format, with `to_jaxgen(state_dict, ...)` and `from_jaxgen(params, ...)`.
"""
