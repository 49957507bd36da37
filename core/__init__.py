"""What every other package may use, such as UserError, atomic_write, human_time and the types of parameters.

Imports the standard library, and pydantic in core.types; nothing else of the project.
"""
