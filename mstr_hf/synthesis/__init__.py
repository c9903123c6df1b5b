"""Synthetic characters and words: fonts, words, shaping, photographic degradation."""
