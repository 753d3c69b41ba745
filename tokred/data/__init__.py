"""Images: the embedded benchmark and the sources that users bring."""
