"""Networks of the papers that no library ships."""
