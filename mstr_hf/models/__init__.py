"""Configurations, models, tokenizer and processors: what a Hub repository of the family holds."""
