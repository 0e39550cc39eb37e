"""Flax Linen modules: networks and the layers they share. No losses, no sampling."""
