"""Noise levels, processes and chains, what a network predicts, which levels are visited."""
