"""Engines built from a bundle's ONNX for one kind of GPU, and where they are kept."""
