"""Loss functions of tensors, with their equation and paper.

May import `core` and `modules.ops`; no Lightning.
"""
