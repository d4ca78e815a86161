"""Augmentations whose parameters are drawn first and applied later."""
