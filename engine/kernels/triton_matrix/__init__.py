"""Triton kernels for what multiplies by weights: linear layers, experts, and the routing between them.

Each reads packed weights as `engine.quant.formats.Packed` has them in memory, never a dequantized copy. Nothing here
waits for the device and every shape follows from the arguments' shapes, so that whole steps can be captured as a graph.
"""
