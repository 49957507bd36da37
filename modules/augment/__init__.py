"""Augmentations of batches during training, such as DiffAugment.

May import `core` and `modules.ops`; no Lightning.
"""
