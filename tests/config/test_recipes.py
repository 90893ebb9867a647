"""Recipes are names of ordinary settings: what they fill in, what may be overridden, and what does not go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import HfArgumentParser

from hf_pacgen.config import NoiseConfig, NoiseRecipe


@pytest.mark.parametrize("recipe", NoiseRecipe)
def test_a_recipe_is_a_set_of_settings(recipe: NoiseRecipe) -> None:
    named = NoiseConfig(recipe=recipe)
    assert {name: getattr(named, name) for name in recipe.facts.fields} == recipe.facts.fields
    # the same settings without the name, and what is stored is all there is to know
    spelled = NoiseConfig(**recipe.facts.fields)
    assert spelled.to_dict() | {"recipe": recipe.value} == named.to_dict()
    assert NoiseConfig.from_dict(json.loads(json.dumps(named.to_dict()))) == named
    assert (recipe.facts.cost == "1") == (named.second_gradient is None)


def test_the_recipe_of_all_settings_before_recipes_is_the_default() -> None:
    """Files of before have none of the new names."""
    new = {"recipe", "direction", "clean_part", "consistency", "target"}
    old = {name: value for name, value in NoiseConfig(antithetic=True).to_dict().items() if name not in new}
    assert NoiseConfig.from_dict(old) == NoiseConfig(antithetic=True)
    assert NoiseConfig().to_dict() == NoiseConfig(recipe="pacgen").to_dict()  # type: ignore[arg-type]


def test_what_is_given_goes_before_the_recipe() -> None:
    made: Any = NoiseConfig(recipe="sam", scale=0.05, direction="previous")  # type: ignore[arg-type]
    assert (made.scale, made.direction.value, made.shape.value) == (0.05, "previous", "isotropic")
    # also where it is what a recipe that says nothing would have
    assert NoiseConfig(recipe="two-point", antithetic=False).antithetic is False  # type: ignore[arg-type]
    # a scale is one of its shape
    assert NoiseConfig(recipe="rows", shape="magnitude").scale == 0.1  # type: ignore[arg-type]


def test_a_scale_that_follows_the_run_has_a_largest() -> None:
    def largest(**settings: Any) -> Any:
        made = NoiseConfig(**settings)
        return made.scale, made.max_scale, made.largest_scale

    assert largest(recipe="rows") == ("auto", 4.0, 4.0) and largest(recipe="rows", max_scale=2) == ("auto", 2, 2.0)
    assert largest(recipe="rows", scale=0.5) == (0.5, None, 0.5)
    # what the recipe, or the shape, has all along
    assert largest(recipe="sam", scale="auto") == ("auto", 0.15, 0.15)
    assert largest(recipe="rows", shape="magnitude", scale=" Auto") == ("auto", 0.1, 0.1)
    assert largest(scale="auto") == ("auto", 1.0, 1.0) and NoiseConfig(scale="auto", max_scale=0).is_silent


def test_flags_of_a_parser_leave_the_recipe_its_settings() -> None:
    parser = HfArgumentParser(NoiseConfig)  # type: ignore[arg-type]
    (made,) = parser.parse_args_into_dataclasses(["--recipe", "sam", "--scale", "0.1", "--eta", "9"])
    assert made == NoiseConfig(recipe="sam", scale=0.1, eta=9)  # type: ignore[arg-type]


def test_the_table_of_the_guide_is_made_of_the_facts() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "train.md").read_text(encoding="utf-8")
    expected = [f"| `{recipe.value}` | {recipe.facts.row} |" for recipe in NoiseRecipe]
    assert [line for line in guide.splitlines() if line in expected] == expected


APART: list[tuple[dict[str, Any], str]] = [
    ({"recipe": "salt"}, "recipe must be one of 'pacgen', 'rows', 'ascent', 'sam', 'flat-lora', 'two-point'"),
    ({"direction": "down"}, "direction must be one of 'random', 'previous', 'gradient'; got 'down'"),
    ({"recipe": "sam", "antithetic": True}, "direction='gradient' and antithetic=True do not go together: of a pair"),
    ({"recipe": "ascent", "clean_part": 0.5}, "direction='previous' and clean_part=0.5 do not go together"),
    ({"recipe": "mixed", "antithetic": True}, "clean_part=0.5 and antithetic=True do not go together: that would be t"),
    ({"recipe": "sam", "shape": "pacgen", "scale": 1}, "direction='gradient' and the curvature 'price', which shape='"),
    ({"clean_part": 0.5}, "clean_part=0.5 and the curvature 'price', which shape='pacgen' asks for, do not go togeth"),
    ({"recipe": "ascent", "distribution": "truncated_normal"}, "direction='previous' and distribution='truncated_nor"),
    ({"recipe": "sam", "draw": "step"}, "draw='step' and direction='gradient' do not go together: every micro-batch"),
    ({"recipe": "sam", "shape": "box"}, "The radius of an ascent (direction='gradient') in the shape 'box' has no def"),
    ({"recipe": "flat-lora", "shape": "isotropic"}, "target='frozen' and shape='isotropic' do not go together: frozen"),
    ({"recipe": "sam", "target": "frozen"}, "target='frozen' and direction='gradient' do not go together: frozen wei"),
    ({"recipe": "flat-lora", "distribution": "truncated_normal"}, "target='frozen' and distribution='truncated_norma"),
    ({"recipe": "rows", "consistency": 1}, "consistency=1 and antithetic=False do not go together: the outputs of a p"),
    ({"antithetic": True, "consistency": 1}, "consistency=1 and the curvature 'price', which shape='pacgen' asks for"),
    ({"scale": "car"}, "scale must be a number of at least 0, or 'auto'; got 'car'."),
    ({"scale": 0.1, "max_scale": 2}, "max_scale=2 is the largest factor of scale='auto'; got scale=0.1. Give one of t"),
    ({"recipe": "ascent", "shape": "box", "scale": "auto"}, "has no default. Set max_scale, the largest sqrt("),
    ({"shape": "isotropic", "scale": "auto", "max_scale": 0.2}, "with max_scale=0.2 needs epsilon of at least 0.2; go"),
    ({"clean_part": 1}, "clean_part must be less than 1, which would be no noise at all; got 1. Use scale=0."),
    ({"shape": "box", "scale": 1.5}, "shape='box' with scale=1.5; expected at most 1.0. Lower scale, or raise gamma "),
]


@pytest.mark.parametrize(("settings", "message"), APART)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NoiseConfig(**settings)
