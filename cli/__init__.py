"""From a command line to a configuration and its objects: loading, schema, messages for the user, signals, environment.

Imports core, and neither torch nor lightning before an object is built, so that help and user errors are printed at once.
"""
