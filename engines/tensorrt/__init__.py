"""TensorRT: three dialects of one library behind one set of verbs."""
