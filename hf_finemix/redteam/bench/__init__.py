"""Attacks × defenses × seeds: a recipe in, one table and one figure out."""
