"""The trainer core that the three training scripts share."""
