"""Which weights: the model zoo, pretrained weights, adapters and other projects' checkpoints."""
