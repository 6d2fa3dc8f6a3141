"""Backends: each builds engines from an ONNX graph and opens them as sessions."""
