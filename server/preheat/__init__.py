"""Preheat: an inference server for optimized PyTorch models whose READY means hot."""

__version__ = "0.1.0"
