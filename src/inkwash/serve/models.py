"""The library of a server: models, and the files that prompts name, by name. No file is opened but for its metadata."""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from inkwash.pipeline.controls import REFERENCES
from inkwash.pipeline.tasks import TASKS
from inkwash.prompts.styles import read_styles
from inkwash.serve.errors import Refusal, unknown
from inkwash.serve.helper import Helper
from inkwash.serve.queue import Queue
from inkwash.serve.settings import Settings
from inkwash.weights.bytes.paths import (
    SHIPPED,
    SHIPPED_CONTROLS,
    SHIPPED_LORAS,
    model_path,
    named_files,
    shipped_lora,
)
from inkwash.weights.kinds import kind_of

log = logging.getLogger("inkwash.serve")
# our kind -> the folders that other programs keep it in, in small letters
FOLDERS = {
    "models": ("checkpoints", "stable-diffusion"),
    "loras": ("loras", "lora"),
    "embeddings": ("embeddings",),
    "hypernetworks": ("hypernetworks",),
    "wildcards": ("wildcards",),
    "upscalers": ("upscalers", "upscale_models", "esrgan", "realesrgan", "bsrgan", "swinir"),
    "controls": ("controlnet", "controlnets", "controls", "ip-adapter", "ipadapter", "t2i_adapter"),
}
SUFFIXES = {
    "loras": (".safetensors", ".pt", ".bin", ".ckpt"),
    "embeddings": (".safetensors", ".pt", ".bin"),
    "hypernetworks": (".pt",),
    "wildcards": (".txt",),
    "controls": (".safetensors", ".pth", ".pt", ".bin", ".ckpt"),
    "upscalers": (".safetensors", ".pth", ".pt", ".param", ".ckpt"),
}
# upscalers' files by the names that AUTOMATIC1111's clients send
UPSCALER_TITLES = {
    "r-esrgan 2x+": "realesrgan_x2plus",
    "r-esrgan 4x+": "realesrgan_x4plus",
    "r-esrgan 4x+ anime6b": "realesrgan_x4plus_anime_6b",
    "r-esrgan general 4xv3": "realesr-general-x4v3",
    "r-esrgan general wdn 4xv3": "realesr-general-wdn-x4v3",
    "r-esrgan animevideo": "realesr-animevideov3",
}
CHECKPOINTS = (".safetensors", ".ckpt")
SHIPPED_AT = Path(str(files("inkwash.shipped")))
MAX_HEADER = 1 << 25  # bytes of a safetensors header


@dataclass(frozen=True)
class Served:
    """A model by its name; about: what `worker.describe` says of it, where that is known."""

    name: str
    source: str  # as `inkwash.load` takes it
    about: Mapping[str, Any] = field(default_factory=dict)
    prior: bool = False  # whether the server has one for models that bring none

    @property
    def hash(self) -> str:
        return self.about.get("sha256", "")[:10]

    @property
    def title(self) -> str:
        return f"{self.name} [{self.hash}]" if self.hash else self.name

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks that it can do."""
        sees, prior = self.about.get("sees"), self.prior or bool(self.about.get("prior"))
        return [task.name for task in TASKS.values() if task.fits(sees, prior)]


class Library:
    """The models of a folder, the shipped ones, and the one that the server was started with."""

    def __init__(self, settings: Settings, queue: Queue):
        self.settings, self.queue = settings, queue
        self.models: dict[str, Served] = {}
        self.refresh()
        first = self.resolve(settings.model).name
        kept = queue.kept("model", first)
        self.current = kept if settings.model == "mini" and kept in self.models else first

    def refresh(self) -> None:
        """Look for new and removed models."""
        given = self.settings.model
        sources = {name: name for name in SHIPPED}
        for folder in self.folders("models"):
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in CHECKPOINTS and path.is_file():
                    sources[path.stem] = str(path)
                elif (path / "model_index.json").is_file():
                    sources[path.name] = str(path)
        if given not in sources:
            path = Path(given)
            name = path.stem if path.is_file() else path.name if path.exists() else given
            sources[name] = given
        self.models = {
            name: self.served(name, source, self.known(source)) for name, source in sources.items()
        }

    def served(self, name: str, source: str, about: Mapping[str, Any]) -> Served:
        return Served(name, source, about, bool(self.settings.load.get("prior")))

    def folders(self, kind: str) -> list[Path]:
        """The folders of a kind within the folder of models, which is itself one of models."""
        root = self.settings.models
        if root is None:
            return []
        found = [
            path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in FOLDERS[kind]
        ]
        return [root, *found] if kind == "models" else found

    def places(self) -> dict[str, list[str]]:
        """The folders of files that prompts name, as keywords of `inkwash.load`."""
        found = {
            kind: [*self.settings.places.get(kind, ()), *self.folders(kind)]
            for kind in ("loras", "embeddings", "hypernetworks", "wildcards")
        }
        styles = [*self.settings.places.get("styles", ())]
        if self.settings.models and (own := self.settings.models / "styles.csv").is_file():
            styles.append(own)
        return {kind: list(map(str, paths)) for kind, paths in (found | {"styles": styles}).items()}

    def resolve(self, name: str | None) -> Served:
        """A model by its name, title, hash or file name, in any case; the current one for none. Raises Refusal."""
        if not name:
            return self.models[self.current]
        wanted = name.strip().lower()
        for model in self.models.values():
            files = {model.name, model.title, model.source, Path(model.source).name}
            if wanted in {text.lower() for text in files} or (model.hash and wanted == model.hash):
                return model
        bare = wanted.rpartition(" [")[0]  # a title of before its file was changed
        if bare:
            return self.resolve(bare)
        raise unknown("model", name)

    def network(self, task: str, name: str | None) -> Served:
        """A task's model by its name, or for upscale also a pixel upscaler. Raises Refusal."""
        try:
            return self.resolve(name)
        except Refusal:
            if task != "upscale" or not name:
                raise
            path = self.upscaler(name, "model")
            return Served(path.name, str(path), {"sees": "upscaler"})

    def choose(self, name: str) -> Served:
        """Make a model the current one."""
        model = self.resolve(name)
        self.current = model.name
        self.queue.keep("model", model.name)
        return model

    def stamp(self, source: str) -> str:
        """A value that changes when a model's files do."""
        path = Path(source)
        if source in SHIPPED:
            path = model_path(source)
        files = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
        return json.dumps([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])

    def known(self, source: str) -> dict[str, Any]:
        """The cached facts about a model, unless its files have changed."""
        kept = self.queue.kept(f"about {source}", {})
        return kept.get("about", {}) if kept.get("stamp") == self.stamp(source) else {}

    async def describe_all(self, helper: Helper) -> None:
        """Inspect models that are not known yet, one after the other; those that can't be opened are not served."""
        for model in list(self.models.values()):
            if model.about:
                continue
            try:
                about = await helper.ask("describe", source=model.source)
            except Refusal as refusal:
                if model.name != self.current:
                    self.models.pop(model.name, None)
                log.warning("the model %s is not served: %s", model.name, refusal.message)
                continue
            except asyncio.CancelledError:
                return
            self.queue.keep(f"about {model.source}", {"stamp": self.stamp(model.source), "about": about})
            self.models[model.name] = self.served(model.name, model.source, about)

    def named(self, kind: str) -> list[str]:
        """The names that prompts may use, of one kind of file: the shortest of each file."""
        return sorted(self.paths(kind))

    def paths(self, kind: str) -> dict[str, Path]:
        """Files of one kind, shipped ones among them, by the names that prompts may use: the shortest of each file."""
        found: dict[Path, str] = {}
        for name, paths in named_files(
            [Path(place) for place in self.places()[kind]], SUFFIXES[kind]
        ).items():
            for path in paths:
                if len(paths) == 1 and len(name) < len(found.get(path, name + " ")):
                    found[path] = name
        shipped = {name: shipped_lora(name) for name in SHIPPED_LORAS if kind == "loras"}
        return {name: path for name, path in shipped.items() if path} | {
            name: path for path, name in found.items()
        }

    def controls(self) -> dict[str, Path]:
        """ControlNets and their like by name: files, folders in the diffusers layout, references, and shipped ones."""
        found: dict[str, Path] = {}
        for path in (path for folder in self.folders("controls") for path in sorted(folder.rglob("*"))):
            if path.is_dir() and (path / "config.json").is_file() and path.name != "image_encoder":
                found.setdefault(path.name, path)
            elif path.suffix.lower() in SUFFIXES["controls"] and not (path.parent / "config.json").exists():
                found.setdefault(path.stem, path)
        shipped = [name for name, folder in SHIPPED_CONTROLS.items() if (SHIPPED_AT / folder).is_dir()]
        named = {name: Path(name) for name in (*REFERENCES, *shipped)}  # which these names always mean
        return {name: path for name, path in found.items() if name not in named} | named

    def control(self, name: str) -> str:
        """A control's name by its name, file name, title or shipped folder, in any case. Raises Refusal."""
        bare = name.strip().lower()
        bare = bare.rpartition(" [")[0] if bare.endswith("]") else bare
        for known, path in self.controls().items():
            if bare in (known.lower(), path.name.lower(), SHIPPED_CONTROLS.get(known)):
                return known
        raise unknown("control", name)

    async def misfits(self, helper: Helper, model: Served) -> dict[str, str | None]:
        """Reasons why controls do not fit a model, None for those that do; kept as long as no file changes."""
        key, paths = f"misfits {model.source}", {name: str(path) for name, path in self.controls().items()}
        stamps = {name: f"{self.stamp(model.source)} {self.stamp(path)}" for name, path in paths.items()}
        kept = {
            name: one for name, one in self.queue.kept(key, {}).items() if stamps.get(name) == one["stamp"]
        }
        new = {name: path for name, path in paths.items() if name not in {*kept, *REFERENCES}}
        if new:
            found = await helper.ask("misfits", source=model.source, controls=new)
            kept |= {name: {"stamp": stamps[name], "why": why} for name, why in found.items()}
            self.queue.keep(key, kept)
        return {name: kept[name]["why"] if name in kept else None for name in paths}

    def is_union(self, name: str) -> bool:
        """Return True for a ControlNet union, by its safetensors file or its folder's config."""
        known = self.control(name)
        path = self.controls()[known]
        if str(path) == known:  # a shipped one or a reference
            return False
        if path.is_dir():
            return "ControlNetUnionModel" in (path / "config.json").read_text(errors="replace")
        return kind_of(header_of(path)) == "controlnet-union"

    def upscalers(self) -> dict[str, Path]:
        """Pixel upscalers by name."""
        found: dict[str, Path] = {}
        for path in (path for folder in self.folders("upscalers") for path in sorted(folder.rglob("*"))):
            if path.suffix.lower() in SUFFIXES["upscalers"]:
                found.setdefault(path.stem, path)
        return found

    def upscaler(self, name: str, field: str) -> Path:
        """An upscaler's file by its name, its file's, or AUTOMATIC1111's, in any case. Raises Refusal.

        field: where it was named.
        """
        wanted = UPSCALER_TITLES.get(name.strip().lower(), name.strip().lower())
        for known, path in self.upscalers().items():
            if wanted in (known.lower(), path.name.lower()):
                return path
        raise Refusal(422, f"{field} {name[:100]!r}: no such upscaler", field)

    def loras(self) -> list[dict[str, Any]]:
        """LoRAs by name, with what their metadata say."""
        return [
            {
                "name": name,
                "path": path.name,
                "hash": (metadata := metadata_of(path)).get("sshs_model_hash", "")[:12] or None,
                "triggers": triggers(metadata),
                "metadata": metadata,
            }
            for name, path in sorted(self.paths("loras").items())
        ]

    def styles(self) -> list[dict[str, str]]:
        found = read_styles([Path(place) for place in self.places()["styles"]])
        return [{"name": name, **style._asdict()} for name, style in found.items()]


def header_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, by names of tensors; none of another one or a broken one."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if 2 <= size <= MAX_HEADER else {}
        return header if isinstance(header, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none of another one or a broken one."""
    found = header_of(path).get("__metadata__")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def triggers(metadata: Mapping[str, str], most: int = 5) -> list[str]:
    """The words that a LoRA was most often trained on, as kohya's scripts write them."""
    try:
        counts: dict[str, int] = {}
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            for tag, count in tags.items():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    except (ValueError, AttributeError, TypeError):
        return []
    return sorted(counts, key=lambda tag: -counts[tag])[:most]
