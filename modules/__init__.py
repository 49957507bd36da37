"""Generative methods: bases, one file for each method, and the parts they are built from.

A method may import the bases and the packages below, never another room but `core`, and never another method.
"""
