"""Losses of predictions and targets."""
