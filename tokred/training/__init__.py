"""Fitting reducers on frozen backbones, and training the shipped backbones."""
