"""Blame cards: one example's answer, and which stage it comes from, as a picture to share."""
