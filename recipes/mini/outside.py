"""A second judge of drawings, made from a network trained on photographs: EfficientNet-Lite0 with heads of its own.

B batch, S side, D width of what the heads read.
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inkwash.files import atomic
from inkwash.metrics.networks import FeatureNetwork, efficientnet_lite0
from inkwash.models.efficientnet import EfficientNetLite0
from inkwash.nn.blocks import channels_last
from recipes.mini.classifier import Judge, augment
from recipes.mini.pictures import Pictures
from recipes.mini.recipe import STYLES

NAME = "outside"  # its folder in the build
COPIES = 4  # of each picture that the heads learn from, each changed in another way
BATCH = 256  # of what the heads learn from at once
MAPS = (0, 2, 4, 10)  # blocks of the network whose statistics tell styles


class OutsideJudge(Judge):
    """ImageNet's EfficientNet-Lite0, frozen, and two small heads that learnt `mini`'s names and styles.

    It shares neither weights nor kind with anything that `mini` learnt from.
    """

    def __init__(self, trunk: FeatureNetwork, num_names: int, num_styles: int):
        super().__init__()
        assert isinstance(trunk.network, EfficientNetLite0)
        self.trunk, self.prepare = channels_last(trunk.network), trunk.prepare
        self.names = head(1280, 768, num_names)
        self.styles = head(self.statistics(torch.zeros(1, 3, 32, 32))[1].shape[1], 256, num_styles)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Maps of the blocks in MAPS and of the last layer, of pixels (B, 3, S, S) in [-1, 1]."""
        net, maps = self.trunk, []
        h = F.relu6(net.bn0(net.conv_stem(self.prepare(pixels))))
        for i, block in enumerate(net.blocks):
            h = block(h)
            if i in MAPS:
                maps.append(h)
        return [*maps, F.relu6(net.bn1(net.conv_head(h)))]

    def statistics(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The heads' inputs (B, D): the last map's means for names, means and deviations of the others for styles."""
        *maps, last = (each.float() for each in self.features(pixels))
        flat = [each.flatten(2) for each in maps]
        both = [f for each in flat for f in (each.mean(2), each.std(2, correction=0))]
        return last.mean((2, 3)), torch.cat(both, dim=1)

    def embed(self, pixels: Tensor) -> Tensor:
        return self.statistics(pixels)[0]

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        of_names, of_styles = self.statistics(pixels)
        return self.names(of_names), self.styles(of_styles)


def head(dim_in: int, width: int, num: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(dim_in, affine=False),
        nn.Linear(dim_in, width),
        nn.GELU(),
        nn.Dropout(0.4),
        nn.Linear(width, num),
    )


def make(num_names: int, weights: Path | None = None) -> OutsideJudge:
    """The judge with untrained heads. weights: of EfficientNet-Lite0, by default as fetched."""
    return OutsideJudge(efficientnet_lite0(weights), num_names, len(STYLES))


@torch.no_grad()
def read(judge: OutsideJudge, pictures: Pictures, rows: Tensor, copies: int, rng: torch.Generator) -> Tensor:
    """Statistics of pictures in bfloat16's precision, (copies, N, D of names and styles together)."""
    exact, judge.trunk = judge.trunk, copy.deepcopy(judge.trunk).bfloat16()
    found = []
    for _ in range(copies):
        parts = []
        for some in track(rows.split(32), "outside judge"):
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(torch.cat(judge.statistics(augment(pictures.pixels(some), rng)), dim=1))
        found.append(torch.cat(parts))
    judge.trunk = exact
    return torch.stack(found)


def fit(judge: OutsideJudge, seen: Tensor, names: Tensor, styles: Tensor, epochs: int = 40) -> None:
    """Teach both heads what was read of pictures, (copies, N, D). Pictures of no name of the judge's have -1."""
    torch.manual_seed(0)
    split = [1280, seen.shape[-1] - 1280]
    flat, names, styles = seen.flatten(0, 1), names.repeat(len(seen)), styles.repeat(len(seen))
    heads = nn.ModuleList([judge.names, judge.styles]).train()
    num = len(flat)
    optimizer = torch.optim.AdamW(heads.parameters(), 2e-3, weight_decay=0.1)
    total = epochs * (num // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total)
    for _ in track(range(epochs), "heads"):
        for some in torch.randperm(num)[: num // BATCH * BATCH].split(BATCH):
            of_names, of_styles = flat[some].split(split, dim=1)
            loss = F.cross_entropy(judge.styles(of_styles), styles[some])
            known = names[some] >= 0
            by_name = judge.names(of_names)[known]
            loss = loss + F.cross_entropy(by_name, names[some][known], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    heads.eval()


def train(build: Path, pictures: Pictures, names: list[str], copies: int = COPIES) -> OutsideJudge:
    """Train the heads on the single drawings, and write them into the build."""
    judge = make(len(names)).eval()
    rows = [i for i, r in enumerate(pictures.records) if r["kind"] in ("single", "recoloured")]
    records = [pictures.records[i] for i in rows]
    numbers = {slug: i for i, slug in enumerate(names)}
    seen = read(judge, pictures, torch.tensor(rows), copies, torch.Generator().manual_seed(0))
    known = torch.tensor([numbers.get(r["slug"], -1) for r in records])
    fit(judge, seen, known, torch.tensor([STYLES.index(r["style"]) for r in records]))
    heads = {k: v.contiguous() for k, v in judge.state_dict().items() if not k.startswith("trunk.")}
    (build / NAME).mkdir(parents=True, exist_ok=True)
    with atomic(build / NAME / "heads.safetensors") as partial:
        save_file(heads, partial)
    return judge


def load(build: Path, num_names: int) -> OutsideJudge:
    """The judge with a build's heads. Raises FileNotFoundError where they were not trained."""
    path = build / NAME / "heads.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: run `python -m recipes.mini classifier outside` first")
    judge = make(num_names)
    judge.load_state_dict(load_file(path), strict=False)
    return judge.eval().requires_grad_(False)
