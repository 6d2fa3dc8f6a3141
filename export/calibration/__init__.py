"""What activations were like over photographs, and the ranges that follow for symmetric int8."""
