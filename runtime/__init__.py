"""Running bundles: decode, resize, one engine call, labels. Imports neither torch nor a compiler."""
