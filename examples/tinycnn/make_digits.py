#!/usr/bin/env python3
"""Writes scikit-learn's 8x8 digits as bytes. Usage: make_digits.py OUT   (needs scikit-learn; made with 1.9.1)

1797 records of 65 bytes: 64 pixels (0..16, row by row) and the label."""
import sys

from sklearn.datasets import load_digits

digits = load_digits()
with open(sys.argv[1], "wb") as out:
    for pixels, label in zip(digits.data, digits.target):
        out.write(bytes(int(p) for p in pixels) + bytes([int(label)]))
