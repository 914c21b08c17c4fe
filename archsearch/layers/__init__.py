"""Layers that several blocks are made of."""
