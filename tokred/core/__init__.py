"""What a token reducer is, how it is planned and applied, and what it costs in FLOPs."""
