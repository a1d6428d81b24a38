"""Automatic learning: a portfolio of families within a time budget, and the best ensemble of what they made."""
