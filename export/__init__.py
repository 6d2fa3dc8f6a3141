"""From trained weights to one ONNX graph. Needs torch; the runtime never imports it."""
