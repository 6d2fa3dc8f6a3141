"""Lower precision: plans, their graphs and engines, and the proof that a lowered graph is safe."""
