"""Fitting: training of reducers on a frozen backbone, or of whole reduced models."""
