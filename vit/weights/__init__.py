"""Pretrained weights, both ways: `load` reads those of other libraries, `convert` writes what they read.

A name table says for each parameter which arrays of the other side it is made of; one strict mapper applies it, and a key left
over on either side is an error.
"""

from vit.weights.pretrained import Pretrained as Pretrained
from vit.weights.source import load as load
