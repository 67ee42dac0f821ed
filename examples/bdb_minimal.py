"""The Batch DropBlock Network (Dai et al., ICCV 2019) in plain PyTorch: network, losses, sampler, training, Rank-1.

    python examples/bdb_minimal.py               # a few minutes on two CPU cores; nothing is downloaded

Sections and figures are those of the paper. `bdbnet.datasets` renders the synthetic people to train on.
"""

import argparse
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from bdbnet.datasets import Manifest, load_manifest


class BatchDropBlock(nn.Module):
    """Sets one rectangle of the feature map to zero, the same for every image of the batch (section 3, Figure 2).

    The triplet loss compares images of one batch: with the same part of all of them missing, it trains the other parts.
    """

    def __init__(self, height_ratio: float = 0.3, width_ratio: float = 1.0) -> None:  # section 4.1.1
        super().__init__()
        self.height_ratio, self.width_ratio = height_ratio, width_ratio

    def mask(self, height: int, width: int) -> Tensor:
        """(height, width), 0 inside a rectangle at a random position and 1 elsewhere."""
        rows, columns = round(self.height_ratio * height), round(self.width_ratio * width)
        top, left = (int(torch.randint(free + 1, ())) for free in (height - rows, width - columns))
        mask = torch.ones(height, width)
        mask[top : top + rows, left : left + columns] = 0
        return mask

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape. Nothing is dropped at test time."""
        return features * self.mask(*features.shape[2:]).to(features.device) if self.training else features


class BDBNetwork(nn.Module):
    """A ResNet whose feature map goes to a global branch and a feature dropping branch (section 3, Figure 3)."""

    def __init__(self, num_classes: int, backbone: str = "resnet18") -> None:
        super().__init__()
        resnet = models.get_model(backbone, weights=None)  # the paper starts from weights of ImageNet
        for layer in resnet.layer4[0].modules():  # stage 4 does not down-sample, for a map twice as high and wide
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
        channels = resnet.fc.in_features
        self.backbone = nn.Sequential(*list(resnet.children())[:-2])  # without its pooling and classifier
        self.reduce_global, self.classify_global = reduction(channels, 512), nn.Linear(512, num_classes)
        # Without a block of its own, the two poolings of one map would make the network hard to converge (section 3).
        self.bottleneck, self.drop = models.resnet.Bottleneck(channels, channels // 4), BatchDropBlock()
        self.reduce_dropping, self.classify_dropping = reduction(channels, 1024), nn.Linear(1024, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) to the embeddings of the two branches, (N, 512) and (N, 1024)."""
        features = self.backbone(images)
        dropped = self.drop(self.bottleneck(features))
        # Max pooling trains the weak features while the strong one is dropped; an average would hide them (section 3).
        return self.reduce_global(features.mean((2, 3))), self.reduce_dropping(dropped.amax((2, 3)))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Triplet and softmax loss of both branches, summed (section 3, "Loss function"); labels are 0..C-1."""
        parts = []
        for embedding, classify in zip(self(images), (self.classify_global, self.classify_dropping)):
            parts.append(batch_hard_triplet(embedding, labels))
            parts.append(F.cross_entropy(classify(embedding), labels, label_smoothing=0.1))
        return torch.stack(parts).sum()


def reduction(channels: int, dimension: int) -> nn.Sequential:
    """The 1 x 1 convolution of a pooled vector, which is a linear layer, then batch normalisation and ReLU."""
    return nn.Sequential(nn.Linear(channels, dimension), nn.BatchNorm1d(dimension), nn.ReLU())


def batch_hard_triplet(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Soft-margin triplet loss of every image with its farthest positive and nearest negative (section 4.1.2)."""
    distances = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    positive, negative = distances.masked_fill(~same, 0).amax(1), distances.masked_fill(same, torch.inf).amin(1)
    return F.softplus(positive - negative).mean()


def identity_batches(labels: Tensor, identities: int, images: int = 4) -> Iterator[Tensor]:
    """Rows of batches of P identities x K images, so that every image has positives; an epoch draws an identity once."""
    people = labels.unique()[torch.randperm(len(labels.unique()))]
    for batch in people[: len(people) // identities * identities].split(identities):  # without the incomplete batch
        rows = [(labels == person).nonzero().flatten() for person in batch]  # where fewer than K, some come again
        yield torch.cat([own[torch.randperm(len(own)).repeat(images)[:images]] for own in rows])


def read_images(manifest: Manifest, size: tuple[int, int]) -> Tensor:
    """The images of a manifest, resized to (height, width) and normalised: (N, 3, height, width)."""
    pixels = [np.array(Image.open(path).convert("RGB").resize(size[::-1])) for path in manifest.paths]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    return (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std


@torch.no_grad()
def rank1(network: BDBNetwork, query: Manifest, gallery: Manifest, size: tuple[int, int], device: str) -> float:
    """Share of the queries whose nearest gallery image shows the same person, by the branches' concatenated embeddings."""
    network.eval()
    images = [read_images(part, size).split(64) for part in (query, gallery)]
    q, g = (torch.cat([torch.cat(network(batch.to(device)), dim=1).cpu() for batch in part]) for part in images)
    q_table, g_table = (part.table[["label", "camera"]].to_numpy() for part in (query, gallery))
    same_label, same_camera = torch.from_numpy(q_table[:, None] == g_table).unbind(2)
    # Images of the person by the query's own camera do not count: they would be too easy.
    nearest = torch.cdist(q, g).masked_fill(same_label & same_camera, torch.inf).argmin(1)
    return float(same_label[torch.arange(len(q)), nearest].double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the Batch DropBlock Network on rendered people.")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 64), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--backbone", default="resnet18", help="a ResNet of torchvision (paper: resnet50)")
    parser.add_argument("--identities", type=int, default=8, help="in a batch, with 4 images each (paper: 32)")
    parser.add_argument("--data-folder", default="data/synthetic_reid", help="where the people are rendered")
    args = parser.parse_args()
    torch.manual_seed(1)
    device, size = "cuda" if torch.cuda.is_available() else "cpu", (args.size[0], args.size[1])
    dataset = load_manifest("synthetic_reid", args.data_folder, image_size=size)
    images, labels = read_images(dataset.subset("train"), size), torch.from_numpy(dataset.training_labels())
    network = BDBNetwork(len(labels.unique()), args.backbone).to(device)
    optimizer = torch.optim.Adam(network.parameters(), weight_decay=5e-4)
    for epoch in range(args.epochs):
        # Section 4.1.2: 1e-3 after a linear warm-up of 50 of 400 epochs, a tenth of it after 200, and again after 300.
        now = 400 * (epoch + 1) / args.epochs
        optimizer.param_groups[0]["lr"] = 1e-3 * min(now / 50, 1) * 0.1 ** ((now > 200) + (now > 300))
        network.train()
        losses = []
        for rows in identity_batches(labels, args.identities):
            flip = torch.rand(len(rows), 1, 1, 1) < 0.5  # the only augmentation of section 4.1.1
            batch = torch.where(flip, images[rows].flip(3), images[rows]).to(device)
            loss = network.loss(batch, labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1:3d}  loss {np.mean(losses):.3f}", flush=True)
    print(f"Rank-1 {rank1(network, dataset.subset('query'), dataset.subset('gallery'), size, device):.1%}")


if __name__ == "__main__":
    main()
