"""Losses, loss transforms, batch transforms and Objectives, one folder per call signature."""
