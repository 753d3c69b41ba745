"""Training the backbones that are shipped for the embedded benchmark."""
