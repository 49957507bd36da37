"""A run folder: checkpoint files, resume, the run manifest, ranks, the cost plan and loggers.

Imports modules.base, modules.staged, modules.bank, metrics.results, modules.ops and core; no callbacks and no command line.
"""
