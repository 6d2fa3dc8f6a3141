"""The search for what is guilty where a lowered engine fails its gate."""
