"""Visualisation of the tokens that methods merge, keep and drop in images, as a sheet of pictures."""
