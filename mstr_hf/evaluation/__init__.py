"""Scoring readings against references."""
