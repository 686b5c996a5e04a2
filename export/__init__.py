"""From a checkpoint to a bundle: ONNX graphs, parity, golden vectors."""
