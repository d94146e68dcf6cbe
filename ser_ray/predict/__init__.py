"""Answers for any recordings."""
