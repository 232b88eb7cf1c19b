"""Slices: examples chosen by filters and kept under a name, and what stages do to each.

A slice holds the ids that its filters left when it was saved, so it stays what it was when better
numbers arrive. In tables it is a column of two values, so that it can stand wherever groups do.
"""
