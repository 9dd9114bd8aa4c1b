"""How an encoder is trained, as a JSON file: what is trained, from which start, on which losses, for how long.

A recipe names an encoder's config for architecture, towers and preprocessing. No torch here: what reads a recipe to plan,
to record or to compare pays nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

RECIPES_FOLDER = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "pinclip-base"


class RecipeError(ValueError):
    """A recipe that cannot be used. The message says which file and what is wrong."""


@dataclass(frozen=True)
class Recipe:
    """A training's parameters.

    encoder: path of the encoder's config. replaces: the file of weights in it that this training makes anew, or None.
    trained: glob patterns of the model's tensors that are trained; all others stay as they are.
    image_projection, text_projection: a tower's last linear layer, where nothing else of the tower is trained; its features
        are then computed once (`embedding.encoder.features`).
    picture_weight: how much the picture weighs against the text where the fusion head starts.
    epochs: how often each pin is an anchor, on average. batch_size: pairs a step and process.
    feature_dropout: of frozen towers' features. modality_dropout: how often a pin is seen without its picture, and how often
        without its text.
    hard_negatives: how many of a bag's an anchor is shown, chosen anew each time.
    image_text_weight, neighbour_weight: of the two losses; 0 leaves one out.
    use_text: False trains and encodes pictures alone, for comparison.
    dims: nested dimensions, largest first.
    """

    encoder: Path
    trained: tuple[str, ...]
    replaces: Path | None = None
    image_projection: str | None = None
    text_projection: str | None = None
    picture_weight: float = 0.6
    epochs: float = 30.0
    batch_size: int = 512
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    warmup_share: float = 0.1
    feature_dropout: float = 0.0
    modality_dropout: float = 0.2
    hard_negatives: int = 1
    image_text_weight: float = 0.5
    neighbour_weight: float = 1.0
    use_text: bool = True
    dims: tuple[int, ...] = (256, 128, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup_share", "feature_dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 0 and below 1, not {getattr(self, name)}")
        if self.modality_dropout > 0.5:
            raise RecipeError("modality_dropout above 0.5 would leave pins with nothing")
        weights = (self.image_text_weight, self.neighbour_weight)
        if min(weights) < 0 or sum(weights) == 0:
            raise RecipeError(f"image_text_weight and neighbour_weight must be 0 or more, not both 0: {weights}")
        if not self.dims or any(dim < 1 for dim in self.dims):
            raise RecipeError(f"dims must be numbers of dimensions, not {self.dims}")

    def is_trained(self, tensor: str) -> bool:
        """Whether the model's tensor of this name is trained."""
        return any(fnmatchcase(tensor, pattern) for pattern in self.trained)

    def changed(self, **values: Any) -> Recipe:
        """The recipe with other values."""
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """For records: JSON values, the files by their names alone, since folders are of one machine."""
        values = asdict(self)
        return values | {"encoder": self.encoder.name, "replaces": self.replaces.name if self.replaces else None}

    @property
    def fingerprint(self) -> str:
        """12 hex digits over all parameters."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Reads a recipe: by path, or by its name under embedding/encoder/recipes. Raises RecipeError."""
    path = _recipe_path(name_or_path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read this recipe: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"{path}: not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a JSON object is needed")
    values = {key: value for key, value in raw.items() if key != "about"}
    projections = values.pop("projections", {})
    known = {field.name for field in dataclasses.fields(Recipe)} - {"image_projection", "text_projection"}
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"{path}: unknown {', '.join(unknown)}; known: {', '.join(sorted(known | {'projections'}))}")
    if missing := sorted({"encoder", "trained"} - set(values)):
        raise RecipeError(f"{path}: lacks {', '.join(missing)}")
    try:
        values["encoder"] = (path.parent / values["encoder"]).resolve()
        values["replaces"] = (path.parent / values["replaces"]).resolve() if values.get("replaces") else None
        values |= {name: tuple(values[name]) for name in ("trained", "dims") if name in values}
        return Recipe(**values, image_projection=projections.get("image"), text_projection=projections.get("text"))
    except (TypeError, AttributeError, RecipeError) as error:
        raise RecipeError(f"{path}: {error}") from error


def _recipe_path(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(".json"):
        return Path(name_or_path).absolute()
    path = RECIPES_FOLDER / f"{text}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES_FOLDER.glob("*.json")))
        raise RecipeError(f"no recipe is called {text!r}: take one of {known}, or the path of a recipe (.json)")
    return path
