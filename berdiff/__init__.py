"""Masked Bernoulli diffusion for anomaly detection in medical images."""

__version__ = "0.1.0"
