"""One comparison, from its configuration to its rows."""
