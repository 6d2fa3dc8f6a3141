"""ONNX to ONNX: the same graph in lower precision, written into its tensors' types."""
