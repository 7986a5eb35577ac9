"""Jobs that make models, by merging and by training: clients' requests, and the messages to drawing processes.

Clients name models, folders of data and results; the server knows where they lie.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from inkwash.merge.options import MergeOptions
from inkwash.serve.checks import dumped, validated
from inkwash.serve.errors import Refusal, unknown
from inkwash.serve.models import Library
from inkwash.serve.settings import Settings
from inkwash.training.methods import METHODS

# of a training, what the server decides
OWN = {"output", "device", "offline", "variant", "cache", "threads", "tensorboard", "layout"}
PATHS = ("data", "class_data", "roles")  # of a training, what lies in the folder of data
# what learns -> our kind of folder for the result
RESULTS = {
    "lora": "loras",
    "embedding": "embeddings",
    "hypernetwork": "hypernetworks",
    "whole": "models",
}
TITLES = {"lora": "LoRA", "dreambooth": "DreamBooth"}
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
Name = Annotated[str, Field(pattern=NAME, description="What the result is called.")]
Token = Annotated[
    str, Field(pattern=NAME, description="The new word, by which prompts name it; also the file's name.")
]


class MergeConfig(MergeOptions):
    """Mix models into a new one."""

    model_config = ConfigDict(title="Merge")
    name: Name


def training_config(name: str) -> type[BaseModel]:
    """The options of a method of training that clients may set, and the result's name."""
    method, title = METHODS[name], TITLES.get(name, name.replace("-", " ").capitalize())
    fields: dict[str, Any] = {"method": (Literal[name], ...), "name": (Name, ...)}  # pyright: ignore
    for key, field in method.config.model_fields.items():
        if key not in OWN:
            fields[key] = (field.annotation, field)
    if "token" in fields:
        fields["token"] = (Token, ...)
    settings = ConfigDict(extra="forbid", protected_namespaces=(), title=title)
    return create_model(
        f"Train{title.replace(' ', '')}", __config__=settings, __doc__=method.summary, **fields
    )


# without methods whose options name other files of this machine, or whose results no client draws with
TRAININGS = {
    name: training_config(name)
    for name, method in METHODS.items()
    if method.trainable in RESULTS and "first_stage" not in method.config.model_fields
}


def inside(root: Path | None, text: str, field: str) -> str:
    """The path that a text means within a folder. Raises Refusal for a path that doesn't exist or lies outside."""
    if root is None or "\0" in text:
        raise unknown(field, text)
    path = (root / text).resolve()
    if not path.is_relative_to(root.resolve()) or not path.exists():
        raise unknown(field, text)
    return str(path)


def result_folder(kind: str, settings: Settings, library: Library) -> Path:
    """The folder for results of a kind: one of that kind which is there, else one that has our name."""
    assert settings.models
    return settings.models if kind == "models" else next(iter(library.folders(kind)), settings.models / kind)


def make_result_folders(settings: Settings, library: Library) -> None:
    """Make a folder for each kind of result, since drawing processes open folders as they start."""
    for kind in set(RESULTS.values()):
        result_folder(kind, settings, library).mkdir(exist_ok=True)


def check_merge(config: MergeConfig, settings: Settings, library: Library) -> dict[str, Any]:
    """A merge as its job keeps it. Raises Refusal."""
    for model in (*config.models, *([config.vae] if config.vae else [])):
        library.resolve(model)
    check_free(result_folder("models", settings, library), config.name)
    return dumped(config)


def merge_arguments(request: Mapping[str, Any], settings: Settings, library: Library) -> dict[str, Any]:
    """The arguments of a merge in a drawing process."""
    given = MergeConfig.model_validate(request)
    sources = tuple(library.resolve(model).source for model in given.models)
    vae = library.resolve(given.vae).source if given.vae else None
    recipe = given.model_copy(update={"models": sources, "vae": vae}).recipe()
    folder = result_folder("models", settings, library)
    return {"recipe": recipe, "output": str(folder / f"{given.name}.safetensors")}


def check_training(config: BaseModel, settings: Settings, library: Library) -> dict[str, Any]:
    """A training as its job keeps it: the method, the name, and the options that are set. Raises Refusal."""
    given = config.model_dump(mode="json", exclude_unset=True)
    method, name = given.pop("method"), given.pop("name")
    request = {"method": method, "name": name, "config": given}
    arguments = training_arguments(request, settings, library)
    validated(METHODS[method].config, arguments["config"])
    check_free(Path(arguments["results"]), given.get("token", name))
    return request


def training_arguments(request: Mapping[str, Any], settings: Settings, library: Library) -> dict[str, Any]:
    """The arguments of a training in a drawing process. Raises Refusal for data that are not there."""
    config, method = dict(request["config"]), METHODS[request["method"]]
    root = settings.data
    config["data"] = [inside(root, text, "data") for text in config["data"]]
    if config.get("class_data"):
        config["class_data"] = inside(root, config["class_data"], "class_data")
    if roles := config.get("roles"):
        pairs = [text.partition("=") for text in roles]
        config["roles"] = [f"{role}={inside(root, folder, 'roles')}" for role, _, folder in pairs]
    config["model"] = library.resolve(config.get("model")).source
    config |= {"output": str(settings.state / "runs" / request["name"]), "device": settings.devices[0]}
    whole = method.trainable == "whole" or config.get("whole")
    results = result_folder(RESULTS["whole" if whole else method.trainable], settings, library)
    return {"method": method.name, "config": config, "results": str(results)}


def check_free(folder: Path, name: str) -> None:
    """Check that no result has this name yet; raise Refusal otherwise."""
    if any(path.stem == name for path in folder.glob("*")):
        raise Refusal(422, f"name: there is already a {name} in {folder.name}", "name")


Arguments = Callable[[Mapping[str, Any], Settings, Library], dict[str, Any]]
BUILDS: Mapping[str, Arguments] = {"merge": merge_arguments, "train": training_arguments}
