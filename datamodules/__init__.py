"""Image files to batches: listing, decoding, fingerprints, samplers and the data modules.

The decoder (`datamodules.decode`) is the only one of the project; tasks use it, too.
May import core and modules.ops of the project.
"""
