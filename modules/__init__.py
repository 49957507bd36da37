"""Generative methods: bases, one file for each method, and the parts they are built from.

A method may import the bases and the packages below, of the other packages only `core`, and never another method.
"""
