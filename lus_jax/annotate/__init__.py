"""Painting confidences in the browser: a page on this machine, whose saves are a data set.

`python -m lus_jax.annotate DIR` serves the page to 127.0.0.1. What is saved is a `lus_folder`:
masks whose value is the confidence, and the tables that training reads.
"""
