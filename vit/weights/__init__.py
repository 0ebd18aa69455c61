"""Pretrained weights, whatever wrote them, as parameters of the one ViT."""

from vit.weights.source import Pretrained as Pretrained
from vit.weights.source import load as load
