"""Augmentations of images inside the compiled step: of GANs, and of diffusion models."""
