"""The model of torch.yaml: layers over the dense features and the embeddings, in PyTorch."""

import torch
from torch import nn


class Layers(nn.Module):
    """Fully connected layers with ReLU between them.

    Args:
        inputs: what a sample has: `num_dense`, `dims` (the width of each feature's vector, by
            its name) and `width`, the columns of all side by side.
        widths: of the layers; one more, the logit, follows.
        dropout: the share of the last layer's inputs that training leaves out.
    """

    def __init__(self, inputs, widths=(256, 128), dropout=0.0):
        super().__init__()
        layers, before = [], inputs.width
        for width in widths:
            layers += [nn.Linear(before, width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(before, 1))

    def forward(self, dense, embeddings):
        """Return logits, [n], of dense, [n, num_dense], and the vectors, {name: [n, dim]}."""
        x = torch.cat([dense, *embeddings.values()], dim=1)
        return self.layers(x).squeeze(1)
