"""Doing what the core says."""
