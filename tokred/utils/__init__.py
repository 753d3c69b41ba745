"""Helpers that know nothing of token reduction."""
