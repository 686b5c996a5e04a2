"""The sampling loop on an NVIDIA GPU: kernels, buffers, graphs."""
