"""Lightning callbacks, and nothing else: what happens at the hooks of a fit or a test. Imports experiment, metrics,
modules.base, modules.capabilities, modules.ops and core; no method.
"""
