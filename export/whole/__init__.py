"""The whole detector as one ONNX graph: encode, the masked loop with its noise, decode, maps."""
