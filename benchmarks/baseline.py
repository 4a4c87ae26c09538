"""The plain transfer-learning script that users write today, for comparison. Nothing of vizsla.

    python benchmarks/baseline.py SPLITS --weights FILE --unfreeze head --epochs 5

It has the habits of its kind: an ImageFolder-like data set, every picture decoded in full and
resized to 224×224, float32, eager, the whole network in train mode, and the frozen layers
computed for every picture in every epoch. It is meant to be a fair one: two loader processes,
no gradients for what is frozen, the weights' own mean, deviation and padding, Adam at the usual
1e-3. Of timm alone the networks are used.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn
from torch.utils.data import DataLoader, Dataset

if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    # timm imports torchvision, whose import fails beside a torch without CUDA unless these exist.
    _operators = torch.library.Library("torchvision", "DEF")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402

SIZE_PX = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class PictureFolder(Dataset):
    """`folder`/CLASS/picture as normalised float tensors of 3×224×224."""

    def __init__(self, folder, classes, mean, std, flip, limit=None, seed=0):
        self.samples = [
            (path, label)
            for label, name in enumerate(classes)
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if limit is not None and limit < len(self.samples):
            self.samples = random.Random(seed).sample(self.samples, limit)
        self.mean, self.std = (torch.tensor(one).view(3, 1, 1) for one in (mean, std))
        self.flip = flip

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        image = Image.open(path).convert("RGB").resize((SIZE_PX, SIZE_PX), Image.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(2)
        return (pixels - self.mean) / self.std, label


def build_model(name, weights, class_count):
    """The network, and the mean and deviation that its weights expect."""
    if weights == "none":
        return timm.create_model(name, num_classes=class_count), IMAGENET_MEAN, IMAGENET_STD
    with safe_open(weights, framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        notes = file.metadata() or {}
    arguments = {"pad_type": notes["pad_type"]} if "pad_type" in notes else {}
    model = timm.create_model(name, num_classes=class_count, **arguments)
    own = model.state_dict()
    model.load_state_dict(
        {key: tensor for key, tensor in state.items() if tensor.shape == own[key].shape},
        strict=False,
    )
    mean, std = (
        tuple(float(part) for part in notes[key].split(",")) if key in notes else usual
        for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return model, mean, std


def freeze(model, unfreeze):
    """Leave gradients on for the head, and for the modules that `unfreeze` names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(unfreeze != "head" and name.startswith(unfreeze + "."))
    for parameter in model.get_classifier().parameters():
        parameter.requires_grad_(True)


def train_epoch(model, loader, criterion, optimizer, device):
    model.train()
    total = 0.0
    for inputs, labels in loader:
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
    return total / len(loader.dataset)


@torch.no_grad()
def accuracy(model, loader, device):
    model.eval()
    hits = 0
    for inputs, labels in loader:
        hits += (model(inputs.to(device)).argmax(1).cpu() == labels).sum().item()
    return hits / len(loader.dataset)


def main():
    started = time.perf_counter()
    options = parse_options()
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = sorted(path.name for path in (options.data / "train").iterdir() if path.is_dir())
    model, mean, std = build_model(options.model, options.weights, len(classes))
    freeze(model, options.unfreeze)
    model.to(device)
    loaders = {
        split: DataLoader(
            PictureFolder(
                options.data / split,
                classes,
                mean,
                std,
                split == "train",
                options.limit,
                options.seed,
            ),
            batch_size=options.batch_size,
            shuffle=split == "train",
            num_workers=options.workers,
        )
        for split in ("train", "valid", "test")
    }
    criterion = nn.CrossEntropyLoss()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=options.lr)
    epochs = []
    for epoch in range(1, options.epochs + 1):
        epoch_started = time.perf_counter()
        loss = train_epoch(model, loaders["train"], criterion, optimizer, device)
        trained_at = time.perf_counter()
        valid = accuracy(model, loaders["valid"], device)
        ended = time.perf_counter()
        epochs.append(
            {
                "train_loss": loss,
                "valid_accuracy": valid,
                "train_seconds": trained_at - epoch_started,
                "valid_seconds": ended - trained_at,
            }
        )
        print(f"epoch {epoch}: train loss {loss:.4f}, validation accuracy {valid:.4f}", flush=True)
    test = accuracy(model, loaders["test"], device)
    torch.save(model.state_dict(), options.output)
    seconds = time.perf_counter() - started
    print(f"test accuracy {test:.4f}, {seconds:.1f} seconds in all")
    if options.json is not None:
        facts = {
            "epochs": epochs,
            "test_accuracy": test,
            "seconds": seconds,
            "train_pictures": len(loaders["train"].dataset),
            "lr": options.lr,
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train, valid and test")
    parser.add_argument("--model", default="mobilenetv2_100", help="a timm architecture")
    parser.add_argument("--weights", default="none", help="a .safetensors file, or none")
    parser.add_argument("--unfreeze", default="head", help="head, or a prefix such as layer4")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--limit", type=int, help="pictures kept of each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(tempfile.gettempdir()) / "baseline.pth",
        help="where the state dict goes",
    )
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
