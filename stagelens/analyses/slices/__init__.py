"""Slices: examples chosen by filters and kept under a name, and what stages do to each.

A slice holds the ids that passed its filters when it was saved, so it does not change when better
numbers arrive. In tables it is a column of two values, so that it can be used wherever groups are.
"""
