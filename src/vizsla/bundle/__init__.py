"""A bundle is the model that leaves: its files, and the predictor that answers with them.

Nothing here imports torch, timm or pydantic: a bundle answers with ONNX Runtime, NumPy and
Pillow alone.
"""
