"""tokred: compare token-reduction methods for Vision Transformers at one FLOP budget."""

__version__ = "0.1.0"
