"""Search among the patches of images, exact or approximate, and images composed of patches.

May import `core` and `modules.ops`; no Lightning.
"""
