"""Losses of logits and labels, and the Objectives built on them."""
